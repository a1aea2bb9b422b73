"""The public Python interface: the same as the commands, in one process that goes on living."""

import inspect
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

import ddpm_hf
from ddpm_hf.cli import main, parse
from ddpm_hf.config import AutoencoderRecipe
from ddpm_hf.training.tracking import Meter
from tests.conftest import TINY, same_tensors
from tests.training.conftest import TINY_AUTOENCODER, TINY_LATENT

SMALLEST = {"model.block_out_channels": [8, 16], "model.norm_num_groups": 4, "model.attention_resolutions": []}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tiny(name="tiny", **overrides):
    return ddpm_hf.load_recipe("quickstart", {**TINY, **SMALLEST, "run.name": name, **overrides})


def weights(run):
    return load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run of a model that knows classes."""
    folder = tmp_path_factory.mktemp("api")
    folders = {"run.output_dir": str(folder / "runs"), "data.store": str(folder / "prepared")}
    return ddpm_hf.train(tiny(**folders, **{"condition.num_classes": 10, "data.held_out": 0.05}))


# ---- importing


def test_importing_the_package_and_help_import_nothing_heavy():
    heavy = "{'torch', 'diffusers', 'accelerate', 'gradio', 'huggingface_hub', 'numpy', 'matplotlib'}"
    code = f"import sys, ddpm_hf; dir(ddpm_hf); found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_answers_in_under_two_seconds():
    """Of a processor's time, which does not depend on what else the machine does."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    said = subprocess.run(
        [sys.executable, "-m", "ddpm_hf", "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert spent() - before < 2
    assert "sample" in said and "evaluate" in said


def test_what_is_offered():
    assert set(ddpm_hf.__all__) == {
        "UserError", "evaluate", "load_model", "load_recipe", "publish", "sample", "train"
    }  # fmt: skip
    assert set(ddpm_hf.__all__) <= set(dir(ddpm_hf))
    for name in set(ddpm_hf.__all__) - {"UserError"}:
        assert inspect.getdoc(getattr(ddpm_hf, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = ddpm_hf.trian


# ---- recipes


def test_a_recipe_with_some_settings_changed():
    recipe = ddpm_hf.load_recipe("quickstart", {"train.max_steps": 700, "data.resolution": (8, 8)})
    assert (recipe.train.max_steps, recipe.data.resolution, recipe.run.name) == (700, (8, 8), "quickstart")
    assert isinstance(ddpm_hf.load_recipe("latent/digits_autoencoder"), AutoencoderRecipe)
    of_numpy = {
        "train.max_steps": np.int64(700),
        "train.learning_rate": np.float32(0.5),
        "data.resolution": [np.int64(8)] * 2,
    }
    recipe = ddpm_hf.load_recipe("quickstart", of_numpy)
    assert (recipe.train.max_steps, recipe.train.learning_rate, recipe.data.resolution) == (700, 0.5, (8, 8))
    Path("mine.yaml").write_text("data: {source: digits, resolution: 64, channels: 1}\ntrain: {max_steps: 3}\n")
    assert ddpm_hf.load_recipe(Path("mine.yaml")).run.name == "mine"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("quickstrat", {}, "quickstrat: no such recipe file; did you mean quickstart?"),
        ("quickstart", {"train.max_step": 3}, "train.max_step: no such setting; did you mean train.max_steps?"),
        ("quickstart", {"train": {"max_steps": 3}}, "train: no such setting"),
        ("quickstart", {"train.max_steps": "3"}, "train.max_steps: '3' should be a whole number"),
        ("quickstart", {3: 4}, "3: no such setting"),
    ],
)
def test_mistakes_in_a_recipe(name, overrides, message):
    with pytest.raises(ddpm_hf.UserError) as error:
        ddpm_hf.load_recipe(name, overrides)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


# ---- training


def test_several_trainings_in_one_process():
    """Precision is a recipe's, whatever was trained before; and the same recipe gives the same bits, before and after."""
    first = ddpm_hf.train(tiny("first"))
    ddpm_hf.train(tiny("bf16", **{"train.precision": "bf16"}))
    again = ddpm_hf.train(tiny("again"))
    assert first == Path("runs/first")
    assert same_tensors(weights(first), weights(again))
    assert not same_tensors(weights(first), weights(Path("runs/bf16")))


def test_the_recipe_says_what_is_trained():
    """An autoencoder, then a model of its latents, then one of pixels."""
    overrides = {**TINY_AUTOENCODER, "run.name": "autoencoder"}
    autoencoder = ddpm_hf.train(ddpm_hf.load_recipe("latent/digits_autoencoder", overrides)) / "autoencoder"
    assert (autoencoder / "config.json").is_file()
    overrides = {**TINY_LATENT, "autoencoder.source": str(autoencoder), "run.name": "latent"}
    latent = ddpm_hf.train(ddpm_hf.load_recipe("latent/digits", overrides))
    assert (latent / "pipeline" / "vae" / "config.json").is_file()
    assert ddpm_hf.sample(latent, 2, steps=2).shape == (2, 1, 8, 8)


def test_the_same_call_goes_on():
    constant = {"train.learning_rate_schedule": "constant"}
    whole = ddpm_hf.train(tiny("whole", **constant))
    ddpm_hf.train(tiny("parts", **constant, **{"train.max_steps": 4}))
    assert same_tensors(weights(whole), weights(ddpm_hf.train(tiny("parts", **constant))))
    before = (whole / "metrics.jsonl").read_text()
    ddpm_hf.train(tiny("whole", **constant))  # complete: nothing to do
    assert (whole / "metrics.jsonl").read_text() == before
    with pytest.raises(ddpm_hf.UserError, match=r"^train.learning_rate: runs/whole was trained with 0.001"):
        ddpm_hf.train(tiny("whole", **constant, **{"train.learning_rate": 1e-4}))


def test_ctrl_c_saves_and_raises_what_python_raises(monkeypatch):
    """A notebook's interrupt: the process lives on, and the same call ends with the bits of an undisturbed run."""
    undisturbed, add_step = ddpm_hf.train(tiny("undisturbed")), Meter.add_step

    def interrupted_in_the_third_step(self, *arguments):
        add_step(self, *arguments)
        interrupted_in_the_third_step.steps += 1
        if interrupted_in_the_third_step.steps == 3:
            signal.raise_signal(signal.SIGINT)

    interrupted_in_the_third_step.steps = 0
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(Meter, "add_step", interrupted_in_the_third_step)
        with pytest.raises(KeyboardInterrupt, match="stopped and saved; the same call goes on"):
            ddpm_hf.train(tiny("disturbed"))
    assert [path.name for path in Path("runs/disturbed/checkpoints").glob("step-*")] == ["step-00000003"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert same_tensors(weights(undisturbed), weights(ddpm_hf.train(tiny("disturbed"))))


def test_what_ends_a_training_before_its_first_step_lets_go_of_the_run_folder(monkeypatch):
    """A notebook keeps the last exception, and with it everything that the failed call had."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ddpm_hf.training.examples.prepare_examples", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            ddpm_hf.train(tiny("early"))
    assert kept.tb is not None
    assert (ddpm_hf.train(tiny("early")) / "pipeline" / "model_index.json").is_file()


def test_a_full_disk_is_one_line():
    Path("runs/full").mkdir(parents=True)
    Path("runs/full/metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ddpm_hf.UserError, match=r"^a file cannot be written: No space left on device; make room"):
        ddpm_hf.train(tiny("full"))


@pytest.fixture
def own_accelerator():
    """A caller's."""
    yield Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_a_caller_s_own_accelerator_goes_on(run, extractor, own_accelerator):
    device = own_accelerator.device

    def is_as_it_was():
        own = own_accelerator
        return (own.device, own.mixed_precision, own.gradient_accumulation_steps) == (device, "bf16", 3)

    ddpm_hf.evaluate(run, extractor=extractor, metrics="frechet", num_images=4, steps=2, out="record.json")
    assert is_as_it_was()
    assert ddpm_hf.train(tiny("beside")).is_dir() and is_as_it_was()
    with pytest.raises(ddpm_hf.UserError, match="no such file"):
        ddpm_hf.evaluate(run, extractor="nowhere.pt")
    assert is_as_it_was()


def test_training_on_a_thread():
    """Which can take no signals."""
    found = []
    thread = threading.Thread(target=lambda: found.append(ddpm_hf.train(tiny("threaded"))))
    thread.start()
    thread.join()
    assert (found[0] / "pipeline" / "model_index.json").is_file()


def test_another_script_of_the_same_name(own_folder, monkeypatch):
    Path("train_unconditional.py").write_text("raise SystemExit('a stranger ran')\ndef train(recipe): ...\n")
    monkeypatch.delitem(sys.modules, "train_unconditional", raising=False)
    monkeypatch.syspath_prepend(Path.cwd())
    with pytest.raises(
        ddpm_hf.UserError, match=r"is found in place of this package's train_unconditional\.py; rename it"
    ):
        ddpm_hf.train(tiny("hidden"))
    assert "train_unconditional" not in sys.modules


def test_train_wants_a_recipe():
    with pytest.raises(ddpm_hf.UserError, match="recipe: 'quickstart' should be a recipe"):
        ddpm_hf.train("quickstart")


# ---- drawing


def test_images_are_those_of_the_command(run):
    model = ddpm_hf.load_model(run, device="cpu")
    options = {"seed": 5, "sampler": "ddim", "steps": 4, "eta": 0.5, "guidance_scale": 2.0, "class_label": "7"}
    images = ddpm_hf.sample(model, 6, **options, guidance_interval=(0.1, 5))
    assert images.dtype == np.uint8 and images.shape == (6, 1, 8, 8)
    given = "--num_images 6 --seed 5 --sampler ddim --steps 4 --eta 0.5 --guidance_scale 2 --class 7"
    main(
        ["sample", str(run), *given.split(), "--guidance_interval", "0.1", "5", "--batch_size", "64", "--out", "a.npz"]
    )
    archive = np.load("a.npz")
    assert archive["labels"].tolist() == [7] * 6
    np.testing.assert_array_equal(images, archive["images"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(
        ddpm_hf.sample(str(run), 2, **options | {"seed": 9}, guidance_interval=[0.1, 5]), images[4:]
    )
    assert (
        np.abs(
            ddpm_hf.sample(model, 2, **options, batch_size=1).astype(int) - ddpm_hf.sample(model, 2, **options)
        ).max()
        <= 1
    )


def test_classes_by_id_or_name_and_in_turn(run):
    model = ddpm_hf.load_model(run)
    in_turn = ddpm_hf.sample(model, 10, steps=3)
    for label in (3, "3", np.int64(3)):
        np.testing.assert_array_equal(ddpm_hf.sample(model, 1, seed=3, steps=3, class_label=label)[0], in_turn[3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images: 0 should be a whole number of at least 1"),
        ({"seed": -1}, "seed: -1 should be"),
        ({"steps": 0}, "steps: 0 should be"),
        ({"steps": 51}, "51 denoising steps cannot be taken"),
        ({"sampler": "dimm"}, "'dimm' is no sampler; choose from ddpm"),
        ({"eta": 0.5}, "eta: is for sampler ddim; ddpm has no such setting"),
        ({"guidance_scale": "3"}, "guidance_scale: '3' should be a number"),
        ({"guidance_interval": (1, 2)}, "guidance_interval: needs a guidance_scale; at 1 there is no guidance"),
        ({"guidance_interval": 3, "guidance_scale": 2}, "guidance_interval: 3 should be a pair"),
        ({"guidance_interval": ("a", "b"), "guidance_scale": 2}, "guidance_interval: ('a', 'b') should be a pair"),
        ({"guidance_interval": "ab", "guidance_scale": 2}, "guidance_interval: 'ab' should be a pair"),
        ({"class_label": 11}, "class_label: class 11 is not one of the ids 0 to 9"),
        ({"class_label": "seven"}, "class_label: no class is named 'seven'"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all: no such folder"),
        ({"model": 3}, "model: a int should be"),
    ],
)
def test_mistakes_in_drawing(run, options, message):
    with pytest.raises(ddpm_hf.UserError) as error:
        ddpm_hf.sample(**{"model": run, **options})
    assert str(error.value).startswith(message) and "--" not in str(error.value)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device: gpu cannot be used"),
        ("meta", "device: meta should be a device that computes, such as cpu or cuda:1"),
        (torch.device("meta"), "device: meta should be"),
        (3.5, "device: 3.5 should be"),
    ],
)
def test_a_device_that_is_not_there(run, device, message):
    with pytest.raises(ddpm_hf.UserError) as error:
        ddpm_hf.load_model(run, device=device)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_home_folder_by_its_short_name(extractor, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    Path(tmp_path / "home" / "mine.yaml").write_text(
        "data: {source: digits, resolution: 64, channels: 1}\ntrain: {max_steps: 3}\n"
    )
    assert ddpm_hf.load_recipe("~/mine.yaml").run.name == "mine"
    run = ddpm_hf.train(tiny(**{"run.output_dir": "~/runs"}))
    assert run == tmp_path / "home" / "runs" / "tiny"
    assert ddpm_hf.sample("~/runs/tiny", 1, steps=2).shape == (1, 1, 8, 8)
    options = {"extractor": extractor, "metrics": "frechet", "num_images": 4, "steps": 2}
    ddpm_hf.evaluate("~/runs/tiny", **options, out="~/record.json", neighbours="~/near.png")
    assert (tmp_path / "home" / "record.json").is_file() and (tmp_path / "home" / "near.png").is_file()
    with pytest.raises(ddpm_hf.UserError, match=r"^~nobody-of-that-name/x: no such folder"):
        ddpm_hf.evaluate("~nobody-of-that-name/x")


# ---- measuring


class Quarters(torch.nn.Module):
    """Means of an image's quarters."""

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x / 255, [2, 2]).flatten(1)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    path = tmp_path_factory.mktemp("extractor") / "quarters.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Quarters()).save(str(path))
    return path


def test_the_record_is_the_command_s(run, extractor):
    asked = {"extractor": str(extractor), "num_images": 12, "sampler": "ddim", "steps": 3, "seed": 2}
    record = ddpm_hf.evaluate(run, metrics=["frechet", "validation_loss"], **asked, neighbours=Path("near.png"))
    assert Path("near.png").is_file()
    (written,) = (run / "evaluations").glob("*.json")
    assert json.loads(written.read_text()) == json.loads(json.dumps(record))
    given = [part for name, value in asked.items() for part in (f"--{name}", str(value))]
    main(["evaluate", str(run), "--metrics", "frechet", "validation_loss", *given, "--out", "command.json"])
    command = json.loads(Path("command.json").read_text())
    passing = ("date", "times", "reference_was_cached")
    assert {k: v for k, v in command.items() if k not in passing} == {
        k: v for k, v in json.loads(json.dumps(record)).items() if k not in passing
    }


def test_numbers_of_numpy_are_numbers(run, extractor):
    options = {"metrics": "frechet", "extractor": extractor, "sampler": "ddim"}
    numbers = {"num_images": 4, "steps": 2, "eta": 0.5, "guidance_scale": 2, "guidance_interval": (0.5, 4)}
    of_numpy = {name: np.float32(number) for name, number in numbers.items() if name in ("eta", "guidance_scale")}
    of_numpy |= {"num_images": np.int64(4), "steps": np.int64(2), "guidance_interval": [np.float32(0.5), np.int64(4)]}
    records = [ddpm_hf.evaluate(run, **options, **given, out="record.json") for given in (numbers, of_numpy)]
    differing = {name for name, value in records[0].items() if records[1][name] != value}
    assert differing <= {"date", "times", "reference_was_cached"}
    assert json.loads(Path("record.json").read_text())["metrics"] == records[0]["metrics"]


def test_measuring_and_training_in_turns(run, extractor):
    """Neither leaves its precision or device to the other; nor does the model's own, which is no."""
    options = {"metrics": ["frechet", "validation_loss"], "extractor": str(extractor), "num_images": 4, "steps": 2}
    before = ddpm_hf.evaluate(run, **options, device="cpu", out="a.json")["metrics"]
    ddpm_hf.train(tiny("bf16", **{"train.precision": "bf16", "train.max_steps": 1, "train.warmup_steps": 0}))
    assert ddpm_hf.evaluate(run, **options, out="b.json")["metrics"] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "fid"}, "metrics: 'fid' is no metric; did you mean frechet?"),
        ({"precision": "fp8"}, "precision: 'fp8' should be one of no, bf16, fp16"),
        ({"num_images": 1, "metrics": ["frechet"]}, "metrics: frechet needs at least 2 images"),
        ({"extractor": "nowhere.pt"}, "extractor: nowhere.pt: no such file"),
        ({"out": "record.txt"}, "out: record.txt should be a .json file"),
        ({"likelihood_images": 2.5}, "likelihood_images: 2.5 should be a whole number"),
        ({"class_label": "seven"}, "class_label: no class is named 'seven'"),
        ({"model": ddpm_hf}, "model: a module should be where a model or images are"),
    ],
)
def test_mistakes_in_measuring(run, extractor, options, message):
    with pytest.raises(ddpm_hf.UserError) as error:
        ddpm_hf.evaluate(**{"model": run, "extractor": str(extractor), **options})
    assert str(error.value).startswith(message)


def test_publishing_names_its_arguments_too(run):
    for variants in (["fp8"], "fp8"):
        with pytest.raises(ddpm_hf.UserError, match=r"^variants: 'fp8' is none; choose from"):
            ddpm_hf.publish(run, variants=variants)
    with pytest.raises(ddpm_hf.UserError, match=r"^run: a int should be a run folder"):
        ddpm_hf.publish(3)


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_arguments_and_defaults_are_the_command_s(name):
    options = vars(parse([name, "MODEL"]))
    for parameter in list(inspect.signature(getattr(ddpm_hf, name)).parameters.values())[1:]:
        default = options.pop(parameter.name)
        if (name, parameter.name) == ("sample", "batch_size"):  # changes no image
            continue
        assert default == (list(parameter.default) if isinstance(default, list) else parameter.default), parameter.name
    left = set(options) - {"command", "run", "model"}
    assert left == ({"out", "strip", "precision", "device"} if name == "sample" else set())


@pytest.mark.slow
def test_several_processes_train_once():
    """They part at the end, and are told so where they would otherwise wait for one another in vain."""
    code = """
import sys, ddpm_hf
from tests.test_api import tiny
ddpm_hf.train(tiny("first"))
try:
    ddpm_hf.train(tiny("second"))
except ddpm_hf.UserError as error:
    print(error, flush=True)
"""
    Path("script.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ddpm_hf.__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("several processes train or evaluate once; launch this program anew") == 2
    assert Path("runs/first/pipeline/model_index.json").is_file() and not Path("runs/second/checkpoints").exists()
