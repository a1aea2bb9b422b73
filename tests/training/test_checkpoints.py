"""Complete or absent, whatever happens while one is written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from ddpm_hf.errors import UserError
from ddpm_hf.training.checkpoints import Checkpoints, find_damage, load_optimizer_tensors, optimizer_tensors


def save(checkpoints, step, size=1000, **state):
    return checkpoints.save({"step": step, **state}, {"model": {"w": torch.full((size,), float(step))}})


def steps(checkpoints):
    return [int(path.name.removeprefix("step-")) for path in checkpoints._paths()]


def test_what_is_saved_is_what_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    save(checkpoints, 3, data={"class names": ["a", "b"]})
    found = checkpoints.latest()
    assert found.step == 3
    assert found.state["data"] == {"class names": ["a", "b"]}
    assert torch.equal(found.tensors("model")["w"], torch.full((1000,), 3.0))


def test_the_last_the_best_and_the_pinned_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, loss in enumerate([0.5, 0.1, 0.3, 0.4, 0.2, 0.6], start=1):
        folder = save(checkpoints, step, validation_loss=loss)
        if step == 3:
            (folder / "keep").touch()
    assert steps(checkpoints) == [2, 3, 5, 6]


def test_the_old_one_goes_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    monkeypatch.setattr(
        "ddpm_hf.training.checkpoints.save_file",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(UserError, match=r"step 2 cannot be written.*No space left.*goes on from step 1"):
        save(checkpoints, 2)
    assert steps(checkpoints) == [1]
    assert find_damage(tmp_path / "step-00000001") is None
    assert not list(tmp_path.glob(".step-*"))


def test_free_space_is_checked_first(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 3_000_000))
    with pytest.raises(UserError, match="it needs 4 MB, 3 MB are free"):
        save(checkpoints, 1, size=10**6)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_writing(tmp_path):
    """The system itself refuses to write on, as a full disk does."""
    code = (
        "import resource, sys, signal\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from ddpm_hf.errors import one_line_errors\n"
        "from ddpm_hf.training.checkpoints import Checkpoints\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"checkpoints = Checkpoints(Path({str(tmp_path)!r}), keep=1)\n"
        "save = lambda step: checkpoints.save({'step': step}, {'model': {'w': torch.zeros(10**6)}})\n"
        "save(1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "with one_line_errors():\n"
        "    save(2)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "the checkpoint of step 2 cannot be written" in run.stderr
    assert run.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert find_damage(tmp_path / "step-00000001") is None
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10**6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "manifest.json").unlink(), "no readable manifest.json"),
        (lambda p: (p / "manifest.json").write_text("{"), "no readable manifest.json"),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda p: os.truncate(p / "model.safetensors", 100), "has 100 bytes instead of"),
        (
            lambda p: (p / "state.json").write_bytes((p / "state.json").read_bytes().replace(b"2", b"3")),
            "state.json has changed",
        ),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(damage, message, tmp_path):
    checkpoints, said = Checkpoints(tmp_path, keep=3), []
    save(checkpoints, 1)
    damage(save(checkpoints, 2))
    assert checkpoints.latest(said.append).step == 1
    assert message in said[0]
    save(checkpoints, 2)  # and can be written again
    assert checkpoints.latest(said.append).step == 2


def test_killed_while_saving_the_previous_one_stays_in_charge(tmp_path):
    code = (
        "from pathlib import Path\nimport torch\nfrom ddpm_hf.training.checkpoints import Checkpoints\n"
        f"checkpoints, step = Checkpoints(Path({str(tmp_path)!r}), keep=2), 0\n"
        "last = checkpoints.latest()\nstep = last.step if last else 0\nprint('ready', flush=True)\n"
        "while True:\n    step += 1\n    checkpoints.save({'step': step}, {'model': {'w': torch.full((10**6,), float(step))}})\n"
    )
    reached = 0
    for delay in (0.05, 0.11, 0.17, 0.26):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        while not (tmp_path / f"step-{reached + 2:08d}").exists():
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = Checkpoints(tmp_path, keep=2).latest()
        assert found.step >= reached
        assert torch.equal(found.tensors("model")["w"], torch.full((10**6,), float(found.step)))
        reached = found.step
    assert reached > 4


def test_the_optimizers_state_by_parameter_name():
    torch.manual_seed(0)
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer, restored = (torch.optim.AdamW(m.parameters(), fused=True) for m in (model, other))
    x = torch.randn(4, 3)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    tensors = optimizer_tensors(optimizer, model)
    assert set(tensors) == {f"{k}.{n}" for k in ("step", "exp_avg", "exp_avg_sq") for n in ("weight", "bias")}
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(restored, other, tensors)
    for m, o in ((model, optimizer), (other, restored)):
        o.zero_grad()
        m(x).square().sum().backward()
        o.step()
    assert torch.equal(model.weight, other.weight)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    folder = save(Checkpoints(tmp_path, keep=1), 1)
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    assert json.loads((folder / "manifest.json").read_text())["model.safetensors"]["bytes"] > 4000


def test_where_every_one_is_damaged_nothing_is_started_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    (save(checkpoints, 1) / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read whole"):
        checkpoints.latest(lambda _: None)


def test_damaged_later_ones_do_not_push_out_what_is_saved_now(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 10)
    for step in (100, 101):
        (save(checkpoints, step) / "state.json").unlink()
    save(checkpoints, 12)
    assert steps(checkpoints)[-1] == 12
    assert checkpoints.latest(lambda _: None).step == 12
    save(checkpoints, 13)
    assert steps(checkpoints) == [12, 13]
