"""Killed, resumed, on one process and on two: the same bits in the end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddpm_hf.config import dump_recipe

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow

SIXTY_STEPS = {
    "train.max_steps": 60,
    "train.checkpoint_every": 4,
    "track.log_every": 1,
    "train.learning_rate_schedule": "constant",
    "model.dropout": 0.1,
    "data.flip": True,
    "sample.num_images": 3,
    "sample.every": 20,
}


def launch(recipe, tmp_path, processes=1, script="train_unconditional.py", **environment):
    file = tmp_path / f"{recipe.run.name}.yaml"
    file.write_text(dump_recipe(recipe))
    launcher = [sys.executable]
    if processes > 1:
        launcher += [
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
            "--standalone",
        ]
    command = [*launcher, script, "--config", str(file)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def finish(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def folder_of(recipe, step=60):
    return Path(recipe.run.output_dir) / recipe.run.name / "checkpoints" / f"step-{step:08d}"


def tensors(recipe, step=60):
    folder = folder_of(recipe, step)
    return {name: load_file(folder / f"{name}.safetensors") for name in ("model", "ema", "optimizer")}


def assert_same_bits(a, b):
    for name in a:
        assert a[name].keys() == b[name].keys()
        assert all(torch.equal(a[name][key], b[name][key]) for key in a[name]), name


def lines(recipe):
    file = Path(recipe.run.output_dir) / recipe.run.name / "metrics.jsonl"
    return (
        [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if file.exists()
        else []
    )


def kill_at_random_moments(recipe, tmp_path, processes, kills, seed, script="train_unconditional.py"):
    """SIGKILL to every process at once, somewhere in the next few steps, again and again; then to the end."""
    moments = random.Random(seed)
    for _ in range(kills):
        process = launch(recipe, tmp_path, processes, script)
        # a line of this process is one that is new after the lines which resuming drops are gone
        while not (Path(recipe.run.output_dir) / recipe.run.name / "recipe.yaml").exists() and process.poll() is None:
            time.sleep(0.01)
        start, steps = None, moments.randint(1, 8)
        while process.poll() is None:
            logged = lines(recipe)  # read once: a resuming process may cut the file between two looks
            last = logged[-1]["step"] if logged else 0
            start = last if start is None or last < start else start
            if last >= start + steps:
                break
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
        kill(process)
    finish(launch(recipe, tmp_path, processes, script))


def kill(process):
    assert process.poll() is None, process.communicate()[0]
    # the launcher's workers have sessions of their own: each process is killed by its number
    for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        victim.kill()
    process.communicate()


def test_two_processes_share_what_importance_sampling_learns(tiny_recipe, tmp_path):
    """Labels and losses of both, through a kill: both draw from the same history, and the bits are the same."""
    settings = {
        **SIXTY_STEPS,
        "train.batch_size": 4,
        "condition.num_classes": 10,
        "diffusion.num_train_timesteps": 10,
        "diffusion.variance_type": "learned_range",
        "diffusion.loss": "vlb",
        "diffusion.timestep_sampling": "importance",
    }
    alone = tiny_recipe(**settings, **{"run.name": "alone"})
    killed = tiny_recipe(**settings, **{"run.name": "killed"})
    finish(launch(alone, tmp_path, 2))
    kill_at_random_moments(killed, tmp_path, 2, kills=2, seed=5)
    assert_same_bits(tensors(alone), tensors(killed))
    a, b = (load_file(folder_of(r) / "objective.safetensors") for r in (alone, killed))
    assert a["seen"].sum() == 2 * 4 * 60  # the losses of both processes
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("processes", "accumulation", "kills"), [(1, 1, 10), (1, 4, 3), (2, 1, 10), (2, 4, 3)])
def test_killed_again_and_again_the_run_ends_with_the_same_bits(processes, accumulation, kills, tiny_recipe, tmp_path):
    settings = {**SIXTY_STEPS, "train.gradient_accumulation_steps": accumulation, "train.batch_size": 4}
    alone = tiny_recipe(**settings, **{"run.name": "alone"})
    killed = tiny_recipe(**settings, **{"run.name": "killed"})
    finish(launch(alone, tmp_path, processes))
    kill_at_random_moments(killed, tmp_path, processes, kills, seed=10 * processes + accumulation)
    assert_same_bits(tensors(alone), tensors(killed))
    a, b = (
        [(line["step"], line["loss"], line["learning_rate"]) for line in lines(recipe)] for recipe in (alone, killed)
    )
    assert a == b
    for picture in ("step-00000020.png", "step-00000060.png"):
        a, b = ((tmp_path / "runs" / name / "samples" / picture).read_bytes() for name in ("alone", "killed"))
        assert a == b


@pytest.fixture
def two_runs(tiny_recipe, tmp_path):
    """One process with batch 8, and two with batch 4 each: the same images a step."""
    settings = {
        "train.learning_rate_schedule": "linear",
        "train.max_steps": 6,
        "track.log_every": 1,
        "ema.decay": 0.5,
        "ema.warmup": False,
    }
    one = tiny_recipe(**settings, **{"run.name": "one", "train.batch_size": 8})
    two = tiny_recipe(
        **settings,
        **{"run.name": "two", "train.batch_size": 4, "train.checkpoint_every": 1, "train.keep_checkpoints": 9},
    )
    finish(launch(one, tmp_path))
    finish(launch(two, tmp_path, processes=2))
    return one, two


def test_two_processes_have_the_same_steps_rates_keys_and_an_average_in_closed_form(two_runs, tmp_path):
    one, two = two_runs
    for key in ("step", "images_seen", "learning_rate"):
        assert [line[key] for line in lines(one)] == [line[key] for line in lines(two)]
    # pitfall 2: the average over two processes, from the raw weights of every step
    raw = [tensors(two, step)["model"] for step in range(1, 7)]
    averages = [tensors(two, step)["ema"] for step in range(1, 7)]
    for key in raw[0]:
        expected = averages[0][key].double()
        for step in range(1, 6):
            expected = 0.5 * expected + 0.5 * raw[step][key].double()
        torch.testing.assert_close(averages[-1][key].double(), expected, rtol=1e-5, atol=1e-7)
    assert tensors(one, 6)["model"].keys() == raw[0].keys()
    assert not any(key.startswith(("module.", "_orig_mod.")) for key in raw[0])


def test_the_samples_of_two_processes_are_those_of_one(tiny_recipe, tmp_path):
    shared = {
        "train.max_steps": 2,
        "train.learning_rate": 1e-30,
        "train.checkpoint_every": 2,
        "sample.num_images": 5,
        "sample.steps": 20,
    }
    pictures = []
    for processes in (1, 2):  # weights that training does not move: what differs is who draws which image
        recipe = tiny_recipe(**shared, **{"run.name": f"p{processes}"})
        finish(launch(recipe, tmp_path, processes))
        pictures.append(Image.open(tmp_path / "runs" / recipe.run.name / "samples" / "step-00000002.png"))
    a, b = (np.asarray(p).astype(int) for p in pictures)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 1


def test_compiled_weights_have_the_same_keys_and_load_into_one_another(tiny_recipe, tmp_path):
    settings = {"train.learning_rate_schedule": "constant", "train.checkpoint_every": 2}
    eager = tiny_recipe(**settings, **{"train.max_steps": 2})
    finish(launch(eager, tmp_path))
    compiled = tiny_recipe(**settings, **{"train.max_steps": 4, "train.compile": True})
    assert "resuming" in finish(launch(compiled, tmp_path))
    both = tiny_recipe(**settings, **{"train.max_steps": 6, "train.compile": True})
    finish(launch(both, tmp_path, processes=2))
    finish(launch(tiny_recipe(**settings, **{"train.max_steps": 8}), tmp_path))
    assert tensors(eager, 6)["model"].keys() == tensors(eager, 8)["model"].keys()
    assert not any("_orig_mod" in key or key.startswith("module.") for key in tensors(eager, 8)["model"])


def test_a_signal_to_the_launcher_saves_and_the_same_command_goes_on(tiny_recipe, tmp_path):
    recipe = tiny_recipe(
        **{"train.max_steps": 100000, "train.checkpoint_every": 100000, "train.learning_rate_schedule": "constant"}
    )
    process = launch(recipe, tmp_path, processes=2)
    metrics = tmp_path / "runs" / "quickstart" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert "saved at step" in output
    (saved,) = (tmp_path / "runs" / "quickstart" / "checkpoints").glob("step-*")
    step = int(saved.name[5:])
    shorter = tiny_recipe(**{"train.max_steps": step + 2, "train.learning_rate_schedule": "constant"})
    assert f"resuming {tmp_path}/runs/quickstart at step {step}" in finish(launch(shorter, tmp_path, processes=2))


def test_accelerate_launch_runs_the_script(tiny_recipe, tmp_path):
    (tmp_path / "r.yaml").write_text(dump_recipe(tiny_recipe()))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "train_unconditional.py",
    ]
    run = subprocess.run([*command, "--config", str(tmp_path / "r.yaml")], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "runs" / "quickstart" / "pipeline" / "model_index.json").is_file()
    mistake = subprocess.run([*command, "--config", "quickstrat"], cwd=ROOT, capture_output=True, text=True)
    assert mistake.returncode == 1
    assert "error: quickstrat: no such recipe file; did you mean quickstart?" in mistake.stderr
