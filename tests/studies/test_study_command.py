"""`ddpm-hf study`, as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SMALL = (
    ("set: {train.max_steps: 20", "set: {data.store: STORE, model.layers_per_block: 1, train.checkpoint_every: 10, train.max_steps: 80"),
    ("num_images: 40", "batch_size: 40, num_images: 40"),
    ("  large: {of: large}", "  large: {of: large, sampler: ddim, steps: 5}"),
    ("label: the smaller}", "label: the smaller, sampler: ddim, steps: 5}"),
    ("set: {model.block_out_channels: [16, 32]}", "set: {model.block_out_channels: [16, 32], model.norm_num_groups: 8}"),
)  # fmt: skip


@pytest.fixture
def start(tmp_path, write_study):
    def start(*options, edits=()):
        file = write_study(*edits)
        command = [sys.executable, "-m", "ddpm_hf", "study", file, "--out", str(tmp_path / "out"), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=tmp_path,
            env=environment,
        )

    return start


@pytest.mark.parametrize(
    ("options", "edits", "told"),
    [
        (["--only", "lage"], (), "--only: lage is no variant at this scale; there are large, tiny"),
        (["--scal", "full"], (), "--scal: no such option; did you mean --scale?"),
        (["--train.max_stepz", "3"], (), "--train.max_stepz: no such option; did you mean --train.max_steps?"),
        (["--train.max_steps", "few"], (), "variants.large: --train.max_steps: 'few' should be a whole number"),
        (["--run.name", "mine"], (), "--run.name: a study's runs have their variants' names; --out chooses its folder"),
        ([], [("titl", "tilt")], "tilte: no such setting; did you mean title?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(write_study, capsys, options, edits, told, tmp_path):
    from ddpm_hf.cli import main

    edits = [("title: Two", "tilte: Two")] if edits else []
    with pytest.raises(SystemExit) as ended:
        main(["study", write_study(*edits), "--out", str(tmp_path / "out"), *options])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_commands_and_leaves_nothing(write_study, capsys, tmp_path):
    from ddpm_hf.cli import main

    main(["study", write_study(), "--out", str(tmp_path / "out"), "--dry_run", "--train.learning_rate", "3e-4"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("python -m train_unconditional --config quickstart") for line in lines) == 2
    assert all("--train.learning_rate 0.0003" in line for line in lines if line.startswith("python"))
    assert sum(line.startswith("ddpm-hf evaluate ") for line in lines) == 4
    assert not (tmp_path / "out").exists()


def test_a_report_can_be_had_before_anything_is_measured(write_study, tmp_path):
    from ddpm_hf.cli import main

    main(["study", write_study(), "--out", str(tmp_path / "out"), "--report_only"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| the larger<br>*not trained yet* | *2.5* | - | *217 s* |" in text


@pytest.mark.slow
def test_a_real_study_interrupted_and_killed_goes_on_to_its_end(start, tmp_path):
    edits = [(old, new.replace("STORE", str(tmp_path / "store"))) for old, new in SMALL]
    out = tmp_path / "out"
    metrics = {name: out / "runs" / name / "metrics.jsonl" for name in ("large", "tiny")}

    def steps(name):
        return json.loads((out / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])["step"]

    def wait_for(path, process):
        while not path.is_file() and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()

    process = start("--jobs", "1", "--track.log_every", "10", edits=edits)
    wait_for(metrics["large"], process)
    process.send_signal(signal.SIGTERM)  # to the study alone, which passes it on
    _, error = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "interrupted; the same command goes on" in error
    assert "Traceback" not in error
    assert 0 < steps("large") < 80
    assert "not trained yet" in (out / "report.md").read_text()

    process = start("--jobs", "1", "--track.log_every", "10", edits=edits)
    wait_for(metrics["tiny"], process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert steps("large") == 80

    process = start("--jobs", "2", "--track.log_every", "10", edits=edits)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, output + error
    assert "large: trained" not in output
    assert "tiny: trained" in output
    assert steps("tiny") == 80
    found = json.loads((out / "results.json").read_text())
    for name in ("large", "tiny", "ddim_5", "ddim_10"):
        assert found["measurements"][name]["values"]["frechet_distance_classifier"] > 0
        assert found["measurements"][name]["problem"] is None
    assert found["claims"][0]["finding"] != "Cannot be said"
    assert "*Not drawn" not in (out / "report.md").read_text()

    process = start("--track.log_every", "10", edits=edits)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "0 trainings and measurements to do" in output
