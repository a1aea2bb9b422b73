"""Whole trainings of a small model on real digits."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddpm_hf.config import dump_recipe
from ddpm_hf.errors import UserError
from ddpm_hf.training.optimization import learning_rate

ROOT = Path(__file__).parent.parent.parent
CONSTANT = {"train.learning_rate_schedule": "constant"}


def weights(run, step, name="model"):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def digest(model):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def test_the_run_folder_holds_what_the_design_says(tiny_recipe, build_session):
    session = build_session(tiny_recipe(**{"data.held_out": 0.1, "track.trackers": ["tensorboard"]}))
    session.train()
    run = session.run.path
    assert {p.name for p in run.iterdir() if not p.name.startswith(".")} == {
        "recipe.yaml", "metrics.jsonl", "checkpoints", "samples", "pipeline", "tensorboard",
    }  # fmt: skip
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["best", "step-00000004", "step-00000008"]
    assert [p.name for p in sorted((run / "samples").iterdir())] == ["step-00000004.png", "step-00000008.png"]
    logged = [line for line in lines(run) if "loss" in line]
    assert [(line["step"], line["images_seen"]) for line in logged] == [(2, 16), (4, 32), (6, 48), (8, 64)]
    assert set(logged[0]) == {
        "step", "images_seen", "learning_rate", "loss", "grad_norm", "images_per_second", "data_wait", "skipped_steps", "training_seconds",
    }  # fmt: skip
    assert all(0 < line["loss"] < 3 and 0 <= line["data_wait"] < 1 and line["skipped_steps"] == 0 for line in logged)
    assert [line["step"] for line in lines(run) if "validation_loss" in line] == [4, 8]
    assert list((run / "tensorboard").glob("events.*"))
    assert json.loads((run / "pipeline" / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"


def test_resumed_training_is_bit_for_bit_the_undisturbed_one(tiny_recipe, build_session):
    overrides = {**CONSTANT, "train.gradient_accumulation_steps": 4, "model.dropout": 0.2, "data.flip": True}
    whole = build_session(tiny_recipe(**overrides, **{"run.name": "whole"}))
    whole.train()
    build_session(tiny_recipe(**overrides, **{"run.name": "parts", "train.max_steps": 3})).train()
    parts = build_session(tiny_recipe(**overrides, **{"run.name": "parts"}))
    parts.train()
    for name in ("model", "ema", "optimizer"):
        assert equal(weights(whole.run.path, 8, name), weights(parts.run.path, 8, name)), name
    a, b = (
        [(x["step"], x["loss"], x["learning_rate"]) for x in lines(s.run.path) if x["step"] > 4] for s in (whole, parts)
    )
    assert a == b


def test_sampling_and_saving_leave_the_trained_weights_alone(tiny_recipe, build_session):
    session = build_session(tiny_recipe())
    session.train()
    before, ema = digest(session.model), digest(session.ema.model)
    session.tracking.log_picture = lambda *_: None
    session.draw_samples(session.progress)
    session.save_checkpoint(session.progress)
    assert (digest(session.model), digest(session.ema.model)) == (before, ema)
    assert before != ema
    assert session.model.training
    saved = load_file((session.run.path / "pipeline") / "unet" / "diffusion_pytorch_model.safetensors")
    assert equal(saved, session.ema.model.state_dict())


def test_the_learning_rate_has_its_analytic_value_at_every_step(tiny_recipe, build_session):
    overrides = {"train.gradient_accumulation_steps": 4, "track.log_every": 1, "train.learning_rate_schedule": "linear"}
    session = build_session(tiny_recipe(**overrides))
    used = []
    session.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    session.train()
    expected = [learning_rate(session.recipe.train, step, 8, 1) for step in range(8)]
    assert used == expected == [line["learning_rate"] for line in lines(session.run.path)]
    assert expected == pytest.approx([0.0005, 0.001, 0.001, *(0.001 * (1 - i / 6) for i in range(1, 6))])


class FailingObjective:
    """The real objective, but some steps' losses are not finite."""

    def __init__(self, objective, bad):
        self.objective, self.bad, self.calls = objective, bad, 0

    def __call__(self, *arguments):
        self.calls += 1
        loss = self.objective(*arguments)
        return loss * float("nan") if self.calls in self.bad else loss


def test_a_step_that_is_not_finite_is_skipped_and_counted(tiny_recipe, build_session):
    session = build_session(tiny_recipe(**CONSTANT, **{"track.log_every": 1}))
    session.task.objective = FailingObjective(session.task.objective, bad={3, 4})
    seen = {}
    update = session.ema.update

    def spy(model, step, accept):
        before = digest(session.ema.model), digest(model)
        update(model, step, accept)
        seen[step] = (accept.item(), before[0] == digest(session.ema.model), digest(model))

    session.ema.update = spy
    session.train()
    assert {step: accept for step, (accept, *_) in seen.items()} == {1: 1, 2: 1, 3: 0, 4: 0, 5: 1, 6: 1, 7: 1, 8: 1}
    assert [seen[step][1] for step in range(1, 9)] == [False, False, True, True, False, False, False, False]
    assert seen[2][2] == seen[3][2] == seen[4][2] != seen[5][2]  # weights stand still while steps are skipped
    logged = lines(session.run.path)
    assert [line["skipped_steps"] for line in logged] == [0, 0, 1, 2, 2, 2, 2, 2]
    assert [line["loss"] is None for line in logged] == [False, False, True, True, False, False, False, False]
    assert all(t.isfinite().all() for t in weights(session.run.path, 8).values())


def test_many_in_a_row_stop_the_run_and_touch_no_checkpoint(tiny_recipe, build_session):
    session = build_session(tiny_recipe(**CONSTANT, **{"train.max_nonfinite_steps": 3, "train.max_steps": 20}))
    session.task.objective = FailingObjective(session.task.objective, bad=set(range(5, 21)))
    with pytest.raises(UserError, match="the last 3 steps were not finite"):
        session.train()
    assert [p.name for p in session.run.checkpoints.iterdir()] == ["step-00000004"]


def test_a_gradient_scaler_skips_what_overflows_and_recovers(tiny_recipe, build_session):
    """fp16's own scaler, on this processor: a scale far too large overflows, is halved, and training goes on."""
    overrides = {**CONSTANT, "track.log_every": 1}
    session = build_session(tiny_recipe(**overrides, **{"train.max_steps": 20}))
    session.scaler = session.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    objective = session.task.objective
    session.task.objective = lambda *arguments: objective(*arguments) * 1000
    session.train()
    skipped = lines(session.run.path)[-1]["skipped_steps"]
    assert 5 < skipped < 15
    state = json.loads((session.run.checkpoints / "step-00000020" / "state.json").read_text())
    assert state["gradient_scaler"]["scale"] == 2.0 ** (127 - skipped)
    resumed = build_session(tiny_recipe(**overrides, **{"train.max_steps": 21}))
    resumed.scaler = resumed.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    resumed.train()
    assert resumed.scaler.get_scale() == 2.0 ** (127 - skipped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.learning_rate": 0.5}, "train.learning_rate: .* was trained with 0.001, the recipe now says 0.5"),
        ({"train.batch_size": 4}, "train.batch_size: .* was trained with 8, the recipe now says 4"),
        ({"data.flip": True}, "data.flip: .* was trained with False, the recipe now says True"),
        ({"train.max_steps": 16}, "train.max_steps: .* was trained with 8, the recipe now says 16"),  # cosine
    ],
)
def test_a_resume_that_would_change_results_is_refused(change, message, tiny_recipe, build_session):
    build_session(tiny_recipe()).train()
    with pytest.raises(UserError, match=message):
        build_session(tiny_recipe(**change)).train()


def test_the_same_step_cut_in_other_pieces_may_resume(tiny_recipe, build_session, capsys):
    build_session(tiny_recipe(**CONSTANT)).train()
    pieces = {"train.batch_size": 4, "train.gradient_accumulation_steps": 2, "train.max_steps": 10}
    session = build_session(tiny_recipe(**CONSTANT, **pieces))
    session.train()
    assert session.progress.step == 10
    assert session.progress.images_seen == 80


def test_other_images_are_refused_on_resume(tiny_recipe, build_session):
    build_session(tiny_recipe(**CONSTANT)).train()
    session = build_session(tiny_recipe(**CONSTANT, **{"train.max_steps": 10}))
    session.examples.store.class_names[:2] = ["one", "zero"]
    with pytest.raises(UserError, match=r"data\.source: the classes were"):
        session.train()


def test_a_finished_run_says_so_and_does_nothing(tiny_recipe, build_session, capsys):
    build_session(tiny_recipe()).train()
    session = build_session(tiny_recipe())
    session.train()
    assert "is already trained to step 8" in capsys.readouterr().out


def test_lines_logged_after_the_checkpoint_of_a_killed_run_are_dropped(tiny_recipe, build_session):
    session = build_session(tiny_recipe(**CONSTANT, **{"train.max_steps": 6, "train.checkpoint_every": 4}))
    session.train()
    folder = session.run.checkpoints / "step-00000006"
    (folder / "manifest.json").unlink()  # as if it had been killed before this one
    with open(session.run.metrics_file, "a") as file:
        file.write('{"step": 7, "lo')
    build_session(tiny_recipe(**CONSTANT)).train()
    assert [line["step"] for line in lines(session.run.path)] == [2, 4, 6, 8]


@pytest.mark.parametrize(("channels", "resolution"), [(1, [28, 28]), (3, [32, 64])])
def test_any_channels_and_shape_train_save_load_and_sample(channels, resolution, tiny_recipe, build_session):
    from ddpm_hf.loading import load_pipeline
    from ddpm_hf.sampling import Sampling, draw_images

    shape = {"data.channels": channels, "data.resolution": resolution, "model.attention_resolutions": []}
    session = build_session(tiny_recipe(**shape, **{"train.max_steps": 2}))
    session.train()
    images = draw_images(load_pipeline(str(session.run.path)), range(3), 2, Sampling("ddim", 4))
    assert images.shape == (3, channels, *resolution)


def test_fine_tuning_starts_from_the_pipelines_weights(tiny_recipe, build_session, tmp_path):
    first = build_session(tiny_recipe())
    first.train()
    recipe_file = tmp_path / "fine.yaml"
    tree = dump_recipe(tiny_recipe()).split("model:")[0] + f"model: {{pretrained: {first.run.path / 'pipeline'}}}\n"
    recipe_file.write_text(
        tree
        + "train: {max_steps: 2, batch_size: 8}\ntrack: {trackers: []}\nsample: {num_images: 1, steps: 2}\ndiffusion: {num_train_timesteps: 50}\n"
    )
    from ddpm_hf.config import load_recipe

    session = build_session(load_recipe(recipe_file, {"run.name": "fine"}))
    assert equal(session.model.state_dict(), first.ema.model.state_dict())
    session.train()
    with pytest.raises(UserError, match=r"data.resolution: .* does not fit .* which was trained with"):
        build_session(load_recipe(recipe_file, {"run.name": "other", "data.resolution": 16}))


def test_out_of_memory_says_what_to_change(tiny_recipe, build_session):
    session = build_session(tiny_recipe())

    def objective(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    session.task.objective = objective
    with pytest.raises(UserError, match=r"halve train.batch_size \(8\) and double train.gradient_accumulation_steps"):
        session.train()


def test_fp16_needs_a_gpu(tiny_recipe, build_session):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        build_session(tiny_recipe(**{"train.precision": "fp16"}))


def test_bfloat16_trains_with_float32_weights_and_warns_where_it_is_slow(tiny_recipe, build_session, caplog):
    session = build_session(tiny_recipe(**{"train.precision": "bf16"}))
    session.train()
    assert {t.dtype for t in weights(session.run.path, 8).values()} == {torch.float32}
    if Path("/proc/cpuinfo").exists() and not torch.accelerator.is_available():
        flags = Path("/proc/cpuinfo").read_text()
        assert ("has no bfloat16 units" in caplog.text) == ("avx512_bf16" not in flags and "amx_bf16" not in flags)


def test_the_average_is_no_worse_than_the_raw_weights(tiny_recipe, build_session):
    overrides = {"train.max_steps": 150, "train.batch_size": 32, "data.held_out": 0.1, "train.learning_rate": 2e-3, **CONSTANT,
                 "ema.decay": 0.99, "train.checkpoint_every": 150}  # fmt: skip
    session = build_session(tiny_recipe(**overrides))
    session.train()
    averaged = session.validation[1]
    session.tracking.log = lambda *_: None
    session.ema.model.load_state_dict(session.model.state_dict())
    session.validate(session.progress)
    assert averaged <= session.validation[1]


# ---- as a program


def start(recipe, tmp_path, *arguments, launcher=()):
    (tmp_path / f"{recipe.run.name}.yaml").write_text(dump_recipe(recipe))
    command = [
        *(launcher or [sys.executable]),
        "train_unconditional.py",
        "--config",
        str(tmp_path / f"{recipe.run.name}.yaml"),
        *arguments,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(number, tiny_recipe, tmp_path):
    recipe = tiny_recipe(**{"train.max_steps": 100000, "train.checkpoint_every": 100000})
    process = start(recipe, tmp_path)
    wait_for(tmp_path / "runs" / "quickstart" / "metrics.jsonl")
    second = start(recipe, tmp_path)  # a second training in the same folder, meanwhile
    said = second.communicate()[0]
    assert second.returncode == 2
    assert "is in use by another training" in said
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    (saved,) = (tmp_path / "runs" / "quickstart" / "checkpoints").glob("step-*")
    assert f"saved at step {int(saved.name[5:])} of 100000" in output
    assert not (tmp_path / "runs" / "quickstart" / "samples").exists()  # drawing may take longer than a scheduler waits


def test_plain_diffusers_loads_the_pipeline_without_this_package(tiny_recipe, build_session):
    session = build_session(tiny_recipe())
    session.train()
    code = (
        "import sys; sys.modules['ddpm_hf'] = None\n"
        "from diffusers import DiffusionPipeline, DDPMPipeline\nimport torch\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(session.run.path / 'pipeline')!r})\n"
        "assert type(pipe) is DDPMPipeline\n"
        "images = pipe(batch_size=2, num_inference_steps=5, generator=[torch.Generator().manual_seed(i) for i in range(2)]).images\n"
        "print(images[0].size, images[0].mode, images[1].tobytes().hex())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.split()
    from ddpm_hf.loading import load_pipeline
    from ddpm_hf.sampling import Sampling, draw_images

    ours = draw_images(load_pipeline(str(session.run.path)), range(2), 2, Sampling("ddpm", 5))
    assert shown[:3] == ["(8,", "8)", "L"]
    assert np.abs(np.frombuffer(bytes.fromhex(shown[3]), np.uint8).astype(int) - ours[1].ravel()).max() <= 1


def test_the_same_images_elsewhere_may_resume_and_others_may_not(tiny_recipe, build_session, tmp_path):
    """What counts are the pixels: a folder that was moved, with new times, is the same data."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = (load_digits().images[:40] * 15).astype(np.uint8)
    for folder, images in (("here", digits), ("there", digits), ("other", digits[::-1])):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / folder / f"{i:03d}.png")

    def recipe(folder, steps):
        sources = {"data.source": str(tmp_path / folder), "data.store": str(tmp_path / f"store {folder}")}
        return tiny_recipe(**CONSTANT, **sources, **{"train.max_steps": steps})

    build_session(recipe("here", 4)).train()
    build_session(recipe("there", 6)).train()
    with pytest.raises(UserError, match="its images are not those that"):
        build_session(recipe("other", 8)).train()


def test_a_full_disk_ends_the_run_with_one_line_and_the_last_checkpoint_intact(tiny_recipe, tmp_path):
    recipe = tiny_recipe(**CONSTANT, **{"train.max_steps": 4})
    assert start(recipe, tmp_path).wait() == 0
    longer = tiny_recipe(**CONSTANT, **{"train.max_steps": 6})
    (tmp_path / "longer.yaml").write_text(dump_recipe(longer))
    # the system refuses files of more than 100 kB, as a full disk would
    code = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\n"
        f"sys.argv = ['train_unconditional.py', '--config', {str(tmp_path / 'longer.yaml')!r}]\n"
        "runpy.run_path('train_unconditional.py', run_name='__main__')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert "cannot be written" in run.stderr.splitlines()[-1]
    folder = tmp_path / "runs" / "quickstart"
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert (folder / "pipeline" / "model_index.json").is_file()
    assert not (folder / ".pipeline.new").exists()


def test_workers_that_read_batches_leave_a_signal_to_their_parent(tiny_recipe, tmp_path):
    recipe = tiny_recipe(**{"train.max_steps": 100000, "train.checkpoint_every": 100000, "data.workers": 2})
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    process = subprocess.Popen(
        [sys.executable, "train_unconditional.py", "--config", str(tmp_path / "r.yaml")], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    wait_for(tmp_path / "runs" / "quickstart" / "metrics.jsonl")
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "saved at step" in output


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_dry_run_ends_with_what_the_run_will_cost(pretrained, tiny_recipe, tiny_unet, tmp_path):
    from diffusers import DDPMPipeline

    from ddpm_hf.config import Diffusion
    from ddpm_hf.diffusion.schedule import build_scheduler

    recipe = tiny_recipe(**{"data.held_out": 0.1, "train.gradient_accumulation_steps": 2})
    text = dump_recipe(recipe)
    if pretrained:
        DDPMPipeline(tiny_unet, build_scheduler(Diffusion())).save_pretrained(tmp_path / "pipeline")
        head, tail = text.split("model:")
        text = head + f"model: {{pretrained: {tmp_path / 'pipeline'}}}\ndiffusion:" + tail.split("diffusion:")[1]
    (tmp_path / "r.yaml").write_text(text)
    command = [sys.executable, "train_unconditional.py", "--config", str(tmp_path / "r.yaml"), "--dry_run"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    costs = json.loads(shown.splitlines()[-1])
    assert list(costs) == ["parameters", "flops_per_image", "images_per_epoch", "optimizer_steps", "memory_bytes"]
    assert costs["images_per_epoch"] == 1797 - 180
    assert costs["optimizer_steps"] == 8
    assert costs["memory_bytes"] > 20 * costs["parameters"]
    if pretrained:
        assert costs["parameters"] == sum(p.numel() for p in tiny_unet.parameters())
    assert not (tmp_path / "runs").exists()


def test_the_paper_s_cifar10_network_has_its_parameters_and_operations():
    from ddpm_hf.config import load_recipe
    from ddpm_hf.training.estimate import estimate

    costs = estimate(load_recipe("cifar10", {"data.source": "digits"}), processes=1)
    assert costs["parameters"] == 35_746_307  # google/ddpm-cifar10-32
    assert costs["flops_per_image"] == pytest.approx(2 * 6.2e9, rel=0.02)


def test_each_tracker_is_started_once(tiny_recipe, build_session, monkeypatch):
    from accelerate.tracking import TensorBoardTracker

    from ddpm_hf.training.tracking import Tracking

    started = []
    monkeypatch.setattr(TensorBoardTracker, "start", lambda self: started.append(self.run_name))
    session = build_session(tiny_recipe(**{"track.trackers": ["tensorboard"]}))
    session.run.path.mkdir(parents=True, exist_ok=True)
    Tracking(session.recipe, session.run, session.accelerator, 0, 1).bar.close()
    assert started == ["tensorboard"]
    monkeypatch.setattr("ddpm_hf.config.checks.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"track.trackers: wandb is not installed; pip install wandb"):
        tiny_recipe(**{"track.trackers": ["wandb"]})


@pytest.mark.parametrize("setting", ["train.channels_last", "train.gradient_checkpointing"])
def test_speed_settings_train_save_resume_and_sample(setting, tiny_recipe, build_session):
    from ddpm_hf.loading import load_pipeline
    from ddpm_hf.sampling import Sampling, draw_images

    overrides = {**CONSTANT, setting: True}
    whole = build_session(tiny_recipe(**overrides, **{"run.name": "whole"}))
    whole.train()
    build_session(tiny_recipe(**overrides, **{"train.max_steps": 4})).train()
    parts = build_session(tiny_recipe(**overrides))
    parts.train()
    for name in ("model", "ema", "optimizer"):
        assert equal(weights(whole.run.path, 8, name), weights(parts.run.path, 8, name)), name
    plain = build_session(tiny_recipe(**CONSTANT, **{"run.name": "plain"}))
    plain.train()
    for a, b in zip(weights(parts.run.path, 8).values(), weights(plain.run.path, 8).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)  # the same mathematics, rounded in another order
    images = draw_images(load_pipeline(str(parts.run.path)), [0], 1, Sampling("ddim", 2))
    assert images.shape == (1, 1, 8, 8)


def test_a_complete_run_is_handed_to_the_push(build_session, tiny_recipe):
    build_session(tiny_recipe()).train()
    session, steps = build_session(tiny_recipe()), []
    session.push = lambda progress: steps.append(progress.step)
    session.train()
    assert steps == [session.max_steps]
