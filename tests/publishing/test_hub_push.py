"""Models on a stand-in for the Hub: pushed while training, and loaded from there."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download

from ddpm_hf.build import build_denoiser
from ddpm_hf.config import dump_recipe, load_recipe
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.errors import UserError
from ddpm_hf.export import save_pipeline
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.publishing import background
from ddpm_hf.publishing.background import Push
from ddpm_hf.publishing.ownership import write_list
from ddpm_hf.publishing.upload import upload
from ddpm_hf.training.loop import Progress
from ddpm_hf.training.run_folder import RunFolder
from tests.publishing.hub_repos import Blob
from tests.publishing.hub_server import READER
from tests.test_combinations import DENOISERS

# ---- from the Hub

LOAD = """
import json, sys
sys.modules["ddpm_hf"] = None  # whoever imports it fails
import numpy as np, torch
from diffusers import DiffusionPipeline
stock, custom = json.loads(sys.argv[1])
for repo_id, options, call in (stock, {}, {}), (custom, {"revision": "trial", "trust_remote_code": True}, {"class_labels": "two"}):
    pipe = DiffusionPipeline.from_pretrained(repo_id, **options)
    image = pipe(num_inference_steps=5, generator=torch.Generator().manual_seed(3), output_type="np", **call).images
    np.save(repo_id.replace("/", "-"), image)
del sys.modules["ddpm_hf"]
from ddpm_hf.cli import run
run(["sample", stock, "--num_images", "1", "--seed", "3", "--steps", "5", "--out", "sampled"])
"""


def build(recipe):
    torch.manual_seed(0)
    classes = recipe.condition.num_classes
    names = classes and {"0": "zero", "1": "one", "2": "two"}
    scheduler = build_scheduler(recipe.diffusion)
    pipe = ImageGenerationPipeline(build_denoiser(recipe).eval(), scheduler, num_classes=classes, id2label=names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_what_was_pushed_loads_from_the_hub_and_draws_the_same(hub, tiny_recipe, tmp_path):
    custom = {"model.kind": "peng", **DENOISERS["peng"], "condition.num_classes": 3}
    pipes = {"ada/stock": build(tiny_recipe()), "ada/custom": build(tiny_recipe(**custom))}
    for repo_id, pipe in pipes.items():
        folder = tmp_path / repo_id
        save_pipeline(pipe, folder)
        upload(folder, repo_id, private=True, revision="trial" if "custom" in repo_id else None, message="a model")
    code = [sys.executable, "-c", LOAD, json.dumps(list(pipes))]
    environment = os.environ | hub.environment(tmp_path / "home") | {"DIFFUSERS_VERBOSITY": "error"}
    shown = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert shown.returncode == 0, shown.stderr
    for repo_id, pipe in pipes.items():
        call = {"class_labels": "two"} if "custom" in repo_id else {}
        generator = torch.Generator().manual_seed(3)
        ours = pipe(num_inference_steps=5, generator=generator, output_type="np", **call).images
        theirs = np.load(tmp_path / f"{repo_id.replace('/', '-')}.npy")
        np.testing.assert_allclose(theirs.ravel(), ours.ravel(), atol=1e-5)
    assert [p.name for p in (tmp_path / "sampled").iterdir()] == ["000003.png"]


def test_a_snapshot_is_what_was_pushed(hub, tiny_unet, tmp_path):
    tiny_unet.save_pretrained(tmp_path / "pushed" / "unet")
    upload(tmp_path / "pushed", "ada/digits", private=False, revision="trial", message="a model")
    got = snapshot_download("ada/digits", revision="trial", local_dir=tmp_path / "got", token=False)
    for file in (tmp_path / "pushed" / "unet").iterdir():
        assert (tmp_path / "got" / "unet" / file.name).read_bytes() == file.read_bytes()
    assert got == str(tmp_path / "got")


# ---- the recipe


def test_the_section_hub(tiny_recipe):
    recipe = tiny_recipe(**{"hub.repo_id": "you/digits", "hub.push_every": 8, "hub.license": "mit"})
    assert "hub: {repo_id: you/digits, push_every: 8, private: false, revision: null, license: mit}" in dump_recipe(
        recipe
    )
    assert "hub: {repo_id: null, license: null}" in dump_recipe(tiny_recipe())
    for settings, expected in (
        ({"hub.repo_id": "you/digits", "hub.push_every": 6}, "6 is no multiple of train.checkpoint_every, 4, so that"),
        (
            {"hub.repo_id": "you/digits", "hub.push_every": 8, "sample.every": 3},
            "8 is no multiple of sample.every, 3, so that the card's picture would be of another step",
        ),
        ({"hub.push_every": 8}, "--hub.push_every: needs hub.repo_id, where the model is pushed to"),
        ({"hub.private": True}, "--hub.private: needs hub.repo_id"),
        ({"hub.repo_id": "digits"}, "--hub.repo_id: 'digits' should be OWNER/NAME"),
    ):
        with pytest.raises(UserError) as error:
            tiny_recipe(**settings)
        assert expected in str(error.value)


# ---- while training

# stands for the publication: says what it was given, and goes on when it is told to
STAND_IN = """
import json, pathlib, sys, time
asked = json.loads(sys.stdin.readline())
place = pathlib.Path(sys.argv[1])
run = pathlib.Path(asked["run"])
asked["files"] = {p.relative_to(run).as_posix(): p.read_text() for p in run.rglob("*") if p.is_file()}
(step,) = (run / "checkpoints").iterdir()
(place / (step.name + ".new")).write_text(json.dumps(asked))
(place / (step.name + ".new")).rename(place / (step.name + ".json"))
while not (place / "go").exists():
    time.sleep(0.01)
print("the address" if (place / "go").read_text() == "well" else sys.exit(f"a line\\nerror: gone; {asked['out']} stays"))
"""


@pytest.fixture
def run(tiny_recipe):
    run = RunFolder(tiny_recipe(**{"hub.repo_id": "ada/digits", "hub.push_every": 4}))
    (run.path / "pipeline" / "unet").mkdir(parents=True)
    run.recipe_file.write_text("a recipe")
    return run


def save_step(run, step):
    """As a training does it: new files in the place of old ones, but for the metrics."""
    for file in (run.path / "pipeline" / "unet" / "weights", run.samples / f"step-{step:08d}.png"):
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(f"of {step}")
    with open(run.metrics_file, "a") as metrics:
        metrics.write(f"{step}\n")
    checkpoint = run.checkpoints / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    for name in ("ema.safetensors", "state.json", "optimizer.safetensors"):
        (checkpoint / name).write_text(f"{name} of {step}")


@pytest.fixture
def push(run, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "COMMAND", (sys.executable, "-c", STAND_IN, str(tmp_path)))
    push = Push(tiny_hub_recipe(run), run)
    yield push
    push.stop()


def tiny_hub_recipe(run):
    return load_recipe("quickstart", {"hub.repo_id": "ada/digits", "hub.private": True, "run.name": run.path.name})


def wait_until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def wait_for(file):
    wait_until(file.exists)
    return json.loads(file.read_text())


def test_one_push_at_a_time_and_the_newest_of_those_that_wait(run, push, tmp_path, capsys):
    for step in (4, 8, 12):
        save_step(run, step)
        push(Progress(step))
        if step == 4:
            first = wait_for(tmp_path / "step-00000004.json")
    push(Progress(16))  # whose checkpoint was put off
    (tmp_path / "go").write_text("well")
    push.wait()
    assert not (tmp_path / "step-00000008.json").exists()
    last = wait_for(tmp_path / "step-00000012.json")
    assert last["files"] == {
        "pipeline/unet/weights": "of 12",
        "recipe.yaml": "a recipe",
        "metrics.jsonl": "4\n8\n12\n",
        "checkpoints/step-00000012/ema.safetensors": "ema.safetensors of 12",
        "checkpoints/step-00000012/state.json": "state.json of 12",
    }
    assert (last["push"], last["private"], last["revision"]) == ("ada/digits", True, None)
    assert last["samples"].endswith("samples.png")
    assert first["files"]["pipeline/unet/weights"] == "of 4"
    push.stop()
    assert not list(run.path.glob(".push-*"))
    shown = capsys.readouterr().err
    assert "pushed step 4: the address\n" in shown
    assert "waiting for the last push to ada/digits, for at most 30 min\n" in shown
    assert shown.endswith("pushed step 12: the address\n")


def test_what_was_linked_aside_stays_as_it_was(run, push, tmp_path):
    save_step(run, 4)
    push(Progress(4))
    wait_for(tmp_path / "step-00000004.json")
    save_step(run, 8)
    aside = push.aside / "step-00000004" / run.path.name
    assert (aside / "pipeline" / "unet" / "weights").read_text() == "of 4"
    assert (aside / "metrics.jsonl").read_text() == "4\n"


def test_a_failed_push_is_one_line(run, push, tmp_path, capsys):
    (tmp_path / "go").write_text("badly")
    save_step(run, 4)
    push(Progress(4))
    push.wait()
    assert capsys.readouterr().err.splitlines()[-1] == (
        "warning: step 4 was not pushed: gone; the training is not touched by it;"
        f" `ddpm-hf publish {run.path} --push ada/digits --private` does it by hand"
    )


def test_the_last_push_is_not_waited_for_without_end(run, push, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(background, "LAST_PUSH", 0.6)
    save_step(run, 4)
    push(Progress(4))
    wait_for(tmp_path / "step-00000004.json")
    process = push._process
    push.wait()
    assert "step 4 was not pushed: it took more than 1 s" in capsys.readouterr().err
    assert process.wait(10) < 0


def test_a_push_that_takes_too_long_is_ended_and_the_next_goes_on(run, push, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(background, "ONE_PUSH", 3)
    save_step(run, 4)
    push(Progress(4))
    wait_for(tmp_path / "step-00000004.json")
    process = push._process
    save_step(run, 8)
    push(Progress(8))
    assert process.wait(60) < 0
    monkeypatch.setattr(background, "ONE_PUSH", 600)
    wait_for(tmp_path / "step-00000008.json")
    (tmp_path / "go").write_text("well")
    push.wait()
    shown = capsys.readouterr().err
    assert "warning: step 4 was not pushed: it took more than 3 s" in shown
    assert shown.endswith("pushed step 8: the address\n")


def test_what_was_pushed_is_not_pushed_again_and_what_was_not_is(run, push, tmp_path, capsys):
    def again(**changes):
        recipe = tiny_hub_recipe(run)
        hub = recipe.hub.model_copy(update=changes)
        other = Push(recipe.model_copy(update={"hub": hub}), run)
        other(Progress(4))
        other.wait()
        other.stop()
        return capsys.readouterr().err

    (tmp_path / "go").write_text("badly")
    save_step(run, 4)
    push(Progress(4))
    push.wait()
    assert "step 4 was not pushed: gone" in capsys.readouterr().err
    (tmp_path / "go").write_text("well")
    assert "pushed step 4: the address\n" in again()
    assert again() == ""
    assert "pushed step 4: the address\n" in again(revision="trial")


# a training at its end, whose last push does not come to its own
WAITING = """
import sys
from types import SimpleNamespace
from ddpm_hf.config import load_recipe
from ddpm_hf.errors import one_line_errors
from ddpm_hf.publishing import background
from ddpm_hf.training.loop import Progress
from ddpm_hf.training.run_folder import open_run
code, output_dir, name, place = sys.argv[1:]
background.COMMAND = (sys.executable, "-c", code, place)
background.check_destination = lambda *_, **__: None
recipe = load_recipe("quickstart", {"run.output_dir": output_dir, "run.name": name, "hub.repo_id": "ada/digits"})
accelerator = SimpleNamespace(is_main_process=True, num_processes=1)
with one_line_errors(), open_run(recipe, accelerator) as run, background.pushing(recipe, run, accelerator) as push:
    push(Progress(4))
"""
# the other process as it is, but for what it publishes
OTHER = """
import os, pathlib, sys, time, types
place = pathlib.Path(sys.argv[1])
def publish(**asked):
    (place / "new").write_text(str(os.getpid()))
    (place / "new").rename(place / "pid.json")
    time.sleep(600)
sys.modules["ddpm_hf.publishing.publish"] = types.SimpleNamespace(publish=publish)
from ddpm_hf.publishing.background import _publish
_publish()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_push_ends_with_its_training(run, tmp_path, number):
    save_step(run, 4)
    (run.checkpoints / "step-00000004" / "state.json").unlink()  # which does not look like a state
    (run.checkpoints / "step-00000004" / "state.json").write_text("{}")
    run.recipe_file.unlink()
    command = [sys.executable, "-c", WAITING, OTHER, str(run.path.parent), run.path.name, str(tmp_path)]
    training = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        pid = wait_for(tmp_path / "pid.json")
        with pytest.raises(UserError, match="is in use by another training"):
            RunFolder(tiny_recipe_of(run)).claim()
        while number != signal.SIGKILL and "waiting for the last push" not in training.stderr.readline():
            assert training.poll() is None
        training.send_signal(number)
        assert training.wait(60) == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
        wait_until(lambda: not alive(pid))
        if number != signal.SIGKILL:
            assert "step 4 was not pushed: interrupted" in training.stderr.read()
            assert not list(run.path.glob(".push-*"))
    finally:
        training.kill()
        training.stderr.close()


def tiny_recipe_of(run):
    return load_recipe("quickstart", {"run.output_dir": str(run.path.parent), "run.name": run.path.name})


def alive(pid):
    """A process that nobody has waited for yet is not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_refused_token_ends_it_before_anything_is_done(hub, tiny_recipe, tmp_path, monkeypatch):
    import train_unconditional
    from ddpm_hf.training.accelerator import forget_accelerator

    monkeypatch.setenv("HF_TOKEN", READER)
    forget_accelerator()
    with pytest.raises(UserError, match=r"^hub.repo_id: ada's token may only read; make one that may write"):
        train_unconditional.train(tiny_recipe(**{"hub.repo_id": "ada/digits"}))
    forget_accelerator()
    assert not (tmp_path / "prepared").exists()


def test_a_hub_that_cannot_be_reached_is_one_line_of_warning(hub, tiny_recipe, run, capsys, monkeypatch):
    monkeypatch.setattr("ddpm_hf.publishing.upload.WAITS", (0.01,))
    hub.stop()
    main = SimpleNamespace(is_main_process=True)
    with background.pushing(tiny_recipe(**{"hub.repo_id": "ada/digits"}), run, main) as push:
        assert push is not None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: hub.repo_id ada/digits: {hub.url} cannot be reached (")
    assert line.endswith("; training begins, and pushes are tried when they are due")


def test_an_edited_card_is_one_line_of_warning(hub, tiny_recipe, tmp_path, run, capsys):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "README.md").write_text("# A model\n")
    write_list(folder)
    upload(folder, "ada/digits", private=False, revision=None, message="a model")
    hub.repos["models", "ada/digits"].branches["main"][-1].files["README.md"] = Blob(b"# Mine\n")
    capsys.readouterr()
    with background.pushing(tiny_recipe(**{"hub.repo_id": "ada/digits"}), run, SimpleNamespace(is_main_process=True)):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ada/digits: its README.md was edited on the Hub, so that nothing was pushed; keep")


def train(recipe, environment, tmp_path):
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    command = [sys.executable, "train_unconditional.py", "--config", str(tmp_path / "r.yaml")]
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    return subprocess.Popen(
        command, cwd=root, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    try:
        return process.communicate(timeout=1800)
    finally:
        process.kill()


@pytest.mark.slow
def test_training_pushes_while_it_goes_on(hub, tiny_recipe, tmp_path):
    hub_settings = {"hub.repo_id": "ada/digits", "hub.push_every": 4, "hub.license": "mit", "hub.revision": "trial"}
    recipe = tiny_recipe(**hub_settings, **{"train.max_steps": 12})
    run = tmp_path / "runs" / "quickstart"
    # training does not wait for the push: it is at its end before the first one can be
    hub.hold("POST .*/commit/", until=(run / "checkpoints" / "step-00000012" / "state.json").exists)
    process = train(recipe, hub.environment(tmp_path / "home"), tmp_path)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    messages = hub.messages("ada/digits", "trial")
    assert messages[0] == "quickstart, step 4"
    assert messages[-1] == "quickstart, step 12"
    files = hub.files("ada/digits", "trial")
    assert files["samples.png"] == (run / "samples" / "step-00000012.png").read_bytes()
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert files[weights] == (run / "pipeline" / weights).read_bytes()
    assert "license: mit" in files["README.md"].decode()
    assert str(tmp_path) not in "".join(content.decode(errors="replace") for content in files.values())
    assert not list(run.glob(".push-*"))
    assert f"pushed step 12: {hub.url}/ada/digits/commit/" in errors


@pytest.mark.slow
def test_a_dead_server_does_not_fail_the_training(hub, tiny_recipe, tmp_path):
    recipe = tiny_recipe(**{"hub.repo_id": "ada/digits", "train.max_steps": 4})
    hub.fail("repos/create", 403, times=1000)
    process = train(recipe, hub.environment(tmp_path / "home"), tmp_path)
    while not hub.answered("auth-check"):  # the last that is asked before the first step
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    hub.stop()
    output, errors = finish(process)
    assert process.returncode == 0, errors
    assert "trained to step 4" in output
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"warning: step 4 was not pushed: --push ada/digits: {hub.url} cannot be reached (")
    assert last.endswith(f"`ddpm-hf publish {tmp_path}/runs/quickstart --push ada/digits` does it by hand")
