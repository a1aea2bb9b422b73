"""`ddpm-hf evaluate`: from a model or a folder to a record and a table."""

import json
import os
import shutil
import subprocess
import sys
import typing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from PIL import Image

from ddpm_hf.build import build_denoiser
from ddpm_hf.cli import main
from ddpm_hf.config import dump_recipe, load_recipe
from ddpm_hf.config.sections import Evaluate
from ddpm_hf.data.prepare import prepare
from ddpm_hf.data.store import PreparedStore
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.evaluation import metrics
from ddpm_hf.evaluation.extractors import classifier
from ddpm_hf.export import save_pipeline
from ddpm_hf.loading import load_pipeline
from ddpm_hf.metric_names import DEFAULT_METRICS, METRICS
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, draw_images
from tests.conftest import write_autoencoder
from tests.evaluation.conftest import random_images, write_images
from tests.training.conftest import TINY_LATENT

FAST = ("--sampler", "ddim", "--steps", "3")


class Net(torch.nn.Module):
    """Means of an image's quarters, and ten classes."""

    channels: int

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.channels = 3
        self.output = torch.nn.Linear(12, 10)

    def forward(self, x):
        values = torch.nn.functional.adaptive_avg_pool2d(x / 255, [2, 2]).flatten(1)
        return values, self.output(values).softmax(dim=1)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    path = tmp_path_factory.mktemp("extractor") / "quarters.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Net()).save(str(path))
    return str(path)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def make_run(tiny_recipe, own_folder):
    """A function from overrides to a run folder as training leaves it, with random weights."""

    def make(**overrides):
        recipe = tiny_recipe(**{"run.name": "mine", **overrides})
        run = Path(recipe.run.output_dir) / "mine"
        torch.manual_seed(0)
        classes = recipe.condition.num_classes
        names = None if classes is None else {str(i): str(i) for i in range(classes)}
        denoiser = build_denoiser(recipe)
        pipe = ImageGenerationPipeline(denoiser, build_scheduler(recipe.diffusion), None, classes, names)
        save_pipeline(pipe, run / "pipeline")
        (run / "recipe.yaml").write_text(dump_recipe(recipe))
        (run / "checkpoints" / "step-00000008").mkdir(parents=True)
        (run / "checkpoints" / "step-00000008" / "state.json").write_text(json.dumps({"step": 8}))
        return run

    return make


@pytest.fixture
def run(make_run):
    return make_run()


def evaluate(*arguments):
    main(["evaluate", *map(str, arguments)])


def only_record(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_a_run_needs_a_path_and_nothing_else(run, extractor, capsys):
    """Reference, classes and size come from its own recipe; the record lies in it."""
    evaluate(run, "--extractor", extractor, "--num_images", 30, *FAST)
    said = capsys.readouterr().out
    (path,) = (run / "evaluations").glob("*.json")
    assert path.name.startswith("step-00000008-")
    record = json.loads(path.read_text())
    assert (record["step"], record["num_images"], record["distinct_images"]) == (8, 30, 30)
    assert record["ema"]["decay"] and record["reference"]["num_images"] == 1797
    assert record["metrics_asked"] == list(DEFAULT_METRICS)
    assert set(record["metrics"]) >= {"frechet_distance_quarters", "precision", "recall", "density", "coverage"}
    assert "Fréchet distance (quarters) ↓" in said and f"record in {path}" in said
    # its images left no trace
    assert not list(run.parent.parent.rglob("*.png"))
    # again: another sampler is another record, the same settings are the same
    evaluate(run, "--extractor", extractor, "--num_images", 30, *FAST, "--batch_size", 7)
    assert "statistics computed before" in capsys.readouterr().out
    evaluate(run, "--extractor", extractor, "--num_images", 30, "--sampler", "ddim", "--steps", 4)
    assert len(list((run / "evaluations").iterdir())) == 2


@pytest.mark.parametrize("batch_size", [4, 64])
def test_the_figures_are_those_of_the_images_that_sample_draws(batch_size, run, extractor):
    drawn = draw_images(load_pipeline(str(run)), range(5, 26), 21, Sampling("ddim", 3))
    np.savez("drawn.npz", images=drawn.transpose(0, 2, 3, 1))
    shared = ["--extractor", extractor, "--metrics", "frechet", "kernel", "--reference_images", 100]
    options = ["--num_images", 21, "--seed", 5, "--batch_size", batch_size]
    evaluate(run, *shared, *options, *FAST, "--out", "model.json")
    evaluate("drawn.npz", "--reference", run, *shared, "--out", "archive.json")
    a, b = (json.loads(Path(name).read_text()) for name in ("model.json", "archive.json"))
    # images may differ by a gray level between batches
    assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-3, abs=1e-5)
    assert a["reference"]["fingerprint"] == b["reference"]["fingerprint"]


def test_two_folders_of_images(extractor, own_folder, capsys):
    a = write_images(own_folder / "a", random_images(40))
    b = write_images(own_folder / "b", random_images(30, seed=1, high=200), ".bmp")
    evaluate(a, "--reference", b, "--extractor", extractor)
    record = only_record(own_folder / "evaluations")
    assert record["sampling"] is None and record["step"] is None
    assert (record["num_images"], record["reference"]["num_images"]) == (40, 30)
    assert "40 images of" in capsys.readouterr().out
    evaluate(a, "--reference", a, "--extractor", extractor, "--out", "same.json", "--num_images", 40)
    same = json.loads(Path("same.json").read_text())["metrics"]
    assert abs(same["frechet_distance_quarters"]) < 1e-6 and same["precision"] == same["coverage"] == 1
    evaluate(a, "--reference", b, "--extractor", extractor, "--out", "some.json", "--num_images", 20)
    assert json.loads(Path("some.json").read_text())["num_images"] == 20


def test_a_pipeline_folder_needs_to_be_told_the_reference(run, extractor, capsys):
    with pytest.raises(SystemExit) as error:
        evaluate(run / "pipeline", "--extractor", extractor, "--num_images", 20, *FAST)
    assert error.value.code == 2
    assert "--reference: the model's images have no recipe to tell it" in capsys.readouterr().err
    recipe = run / "recipe.yaml"
    evaluate(run / "pipeline", "--extractor", extractor, "--num_images", 20, *FAST, "--reference", recipe)
    assert only_record(Path("evaluations"))["reference"]["num_images"] == 1797


def test_models_of_other_weights_and_like_names_have_records_of_their_own(make_run, extractor, own_folder):
    run = make_run()
    for number, name in enumerate(("a-1.5", "a-1.6")):
        pipe = load_pipeline(str(run))
        pipe.unet.conv_in.bias.data += number
        pipe.save_pretrained(own_folder / name)
        for place in (own_folder / name, own_folder / "same" / "model"):
            if place.name == "model":
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(own_folder / name, place)
            evaluate(
                place, "--extractor", extractor, "--num_images", 4, *FAST, "--reference", run, "--metrics", "frechet"
            )
    names = sorted(path.name.rsplit("-", 1)[0] for path in Path("evaluations").iterdir())
    assert names == ["a-1.5", "a-1.6", "model", "model"]


def test_a_run_folder_that_was_moved_is_what_it_was(run, extractor):
    moved = run.rename(run.parent.parent / "elsewhere")
    evaluate(moved, "--extractor", extractor, "--num_images", 20, *FAST, "--metrics", "frechet")
    assert only_record(moved / "evaluations")["step"] == 8


def test_neighbours_of_the_first_samples(run, extractor):
    evaluate(run, "--extractor", extractor, "--num_images", 20, *FAST, "--neighbours", "pages/near.png")
    assert min(Image.open("pages/near.png").size) > 300


def test_classes_by_the_extractor_and_by_a_classifier_of_the_run_s_own(make_run, extractor, monkeypatch):
    monkeypatch.setitem(classifier.SETTINGS, "examples", 12_000)  # enough for this, and quick
    run = make_run(**{"condition.num_classes": 10})

    def record(*options):
        evaluate(run, "--num_images", 30, *FAST, "--metrics", *options, "--out", "record.json")
        return json.loads(Path("record.json").read_text())

    images = torch.from_numpy(draw_images(load_pipeline(str(run)), range(30), 30, Sampling("ddim", 3)))
    with torch.no_grad():
        seen = Net()(images.float().expand(-1, 3, -1, -1))[1].argmax(dim=1)
    expected = (seen.numpy() == np.arange(30) % 10).mean()
    for options in (["class_agreement"], ["class_agreement", "score"]):
        found = record(*options, "--extractor", extractor)
        assert found["classifier"] == found["extractor"] and found["classifier"]["name"] == "quarters"
        assert found["metrics"]["class_agreement"] == pytest.approx(expected, abs=1 / 30)
    # with none named, a classifier of the run's own images
    found = record("class_agreement")
    assert found["classifier"]["name"] == "classifier" and found["classifier"]["accuracy"] > 0.8
    found = record("class_agreement", "score", "--extractor", extractor, "--classifier", "classifier")
    assert (found["classifier"]["name"], found["extractor"]["name"]) == ("classifier", "quarters")


def test_classes_of_drawn_images_by_a_classifier_of_the_reference_s(make_run, monkeypatch):
    monkeypatch.setitem(classifier.SETTINGS, "examples", 12_000)
    recipe = make_run(**{"condition.num_classes": 10}) / "recipe.yaml"
    store = prepare(load_recipe(recipe).data)
    images = np.stack([store.read(i) for i in range(50)]).transpose(0, 2, 3, 1)
    np.savez("real.npz", images=images, seeds=np.arange(50), labels=store.labels[:50])
    np.savez("wrong.npz", images=images, seeds=np.arange(50), labels=(store.labels[:50] + 1) % 10)
    agreement = {}
    for name in ("real", "wrong"):
        options = ("--metrics", "class_agreement", "--extractor", "classifier", "--reference", recipe)
        evaluate(f"{name}.npz", *options, "--out", f"{name}.json")
        agreement[name] = json.loads(Path(f"{name}.json").read_text())["metrics"]["class_agreement"]
    assert agreement["real"] > 0.8 and agreement["wrong"] < 0.2


def test_bits_per_dimension_and_the_validation_loss_are_training_s(make_run, extractor, build_task):
    run = make_run(**{"data.held_out": 0.05, "diffusion.num_train_timesteps": 10})
    options = ["--metrics", "bits_per_dimension", "validation_loss", "--likelihood_images", 6, "--batch_size", 4]
    evaluate(run, *options, "--out", "a.json")
    record = json.loads(Path("a.json").read_text())
    assert set(record["metrics"]) == {"bits_per_dimension", "bits_per_dimension_standard_error", "validation_loss"}
    assert record["num_images"] is None and record["distinct_images"] is None and record["extractor"] is None
    assert record["likelihood"]["part"] == "held out" and record["likelihood"]["num_images"] == 6
    AcceleratorState._reset_state(reset_partial_state=True)
    task = build_task(run)
    assert record["metrics"]["validation_loss"] == task.validate(task.model)["validation_loss"]


@pytest.fixture
def build_task():
    """A run's task, as a training script makes it."""

    def build(run):
        from ddpm_hf.codec import PixelCodec
        from ddpm_hf.config import load_recipe
        from ddpm_hf.training.accelerator import build_accelerator
        from ddpm_hf.training.denoising import Denoising
        from ddpm_hf.training.examples import prepare_examples

        recipe = load_recipe(run / "recipe.yaml")
        accelerator = build_accelerator(recipe)
        examples = prepare_examples(recipe, PixelCodec(), progress=False)
        denoiser = load_pipeline(str(run)).unet
        return Denoising(recipe, denoiser, PixelCodec(), build_scheduler(recipe.diffusion), examples, accelerator)

    return build


def test_a_model_of_latents_is_compared_in_pixels(own_folder, extractor, capsys):
    """With the images that its latents are of, while data.store names the latents; the loss is of latents."""
    autoencoder = AutoencoderKL.from_pretrained(write_autoencoder(own_folder / "autoencoder"))
    settings = {**TINY_LATENT, "data.store": "latents", "data.held_out": 0.02, "data.flip": True}
    recipe = load_recipe("latent/digits", {**settings, "autoencoder.source": str(own_folder / "autoencoder")})
    torch.manual_seed(0)
    names = {str(i): str(i) for i in range(10)}
    scheduler = build_scheduler(recipe.diffusion, clip_sample=False)
    run = own_folder / "runs" / "latent"
    save_pipeline(ImageGenerationPipeline(build_denoiser(recipe), scheduler, autoencoder, 10, names), run / "pipeline")
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    evaluate(
        run, "--extractor", extractor, "--num_images", 12, *FAST, "--metrics", "frechet", "validation_loss", "--out", "a.json"
    )  # fmt: skip
    record = json.loads(Path("a.json").read_text())
    assert record["shape"] == record["reference"]["shape"] == [1, 8, 8]
    assert record["reference"]["num_images"] == 1797 - 36
    assert record["metrics"].keys() == {"frechet_distance_quarters", "validation_loss", "validation_loss_unlabelled"}
    assert "latents" in PreparedStore("latents").fingerprint
    with pytest.raises(SystemExit):
        evaluate(run, "--metrics", "bits_per_dimension")
    assert "bits_per_dimension: is of 8-bit pixels; this model works on latents" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["empty"], "empty: holds no image files, and is neither a run folder"),
        (["mixed"], "mixed: its images are of different sizes, 8x8 (0000.png) and 9x9 (0001.png)"),
        (["RUN", "--metrics", "fid"], "--metrics: 'fid' is no metric; did you mean frechet?"),
        (["RUN", "--extractor", "nowhere.pt"], "--extractor: nowhere.pt: no such file"),
        (["RUN", "--extractor", "resnet"], "--extractor: resnet is none of inception, dinov2"),
        (["RUN", "--reference", "nowhere"], "--reference: nowhere is neither a folder of images"),
        (["RUN", "--reference", "empty"], "--reference: empty holds no image files"),
        (["RUN", "--reference", "large"], "--reference: its images are 1x9x9 (channels, height, width), the model's"),
        (["RUN", "--reference", "validation"], "--reference: this run has no images to validate on"),
        (["RUN", "--reference_images", "5000"], "--reference_images: 5000 are more than there are, 1797"),
        (["RUN", "--num_images", "1", "--metrics", "frechet"], "--metrics: frechet needs at least 2 images, and there are 1"),
        (["RUN", "--num_images", "3", "--metrics", "kernel"], "--metrics: kernel needs at least 4 images, and there are 3"),
        (["RUN", "--sampler", "dimm"], "choose from ddpm, ddim"),
        (["RUN", "--steps", "51"], "51 denoising steps cannot be taken"),
        (["RUN", "--class", "3"], "--class: this model is unconditional"),
        (["RUN", "--metrics", "class_agreement"], "--metrics: class_agreement needs images that were drawn by class"),
        (["RUN", "--metrics", "validation_loss"], "--metrics: validation_loss is of a run that validates"),
        (["RUN", "--device", "gpu"], "--device: gpu cannot be used"),
        (["RUN", "--out", "record.txt"], "--out: record.txt should be a .json file"),
        (["RUN", "--out", "few/0000.png/a.json"], "--out: few/0000.png/a.json cannot be written: "),
        (["RUN", "--neighbours", "few/0000.png/a.png"], "--neighbours: few/0000.png/a.png cannot be written: "),
        (["RUN", "--neighbours", "page.jpg"], "--neighbours: page.jpg should be a .png file"),
        (["images", "--reference", "images", "--steps", "5"], "--steps: is for a model that draws; images holds images"),
        (["images", "--reference", "images", "--class", "5"], "--class: is for a model that draws"),
        (["images", "--reference", "images", "--num_images", "99"], "--num_images: 99 are more than images has, 8"),
        (["images", "--metrics", "bits_per_dimension"], "--metrics: bits_per_dimension is of a model; images holds images"),
        (["images"], "--reference: images have no recipe to tell it"),
        (["few", "--reference", "images"], "--metrics: kernel needs at least 4 images, and there are 2"),
    ],
)  # fmt: skip
def test_mistakes(arguments, message, run, extractor, own_folder, capsys, monkeypatch):
    def too_late(*_, **__):
        raise AssertionError("a mistake is found before the first image is drawn")

    monkeypatch.setattr("ddpm_hf.evaluation.images.draw_batch", too_late)
    monkeypatch.setattr("ddpm_hf.evaluation.evaluate.extract", too_late)
    (own_folder / "empty").mkdir()
    write_images(own_folder / "mixed", [random_images(1, 8)[0], random_images(1, 9)[0]])
    write_images(own_folder / "large", random_images(8, 9))
    write_images(own_folder / "images", random_images(8))
    write_images(own_folder / "few", random_images(2))
    arguments = [str(run) if a == "RUN" else a for a in arguments]
    if "--extractor" not in arguments:
        arguments += ["--extractor", extractor]
    with pytest.raises(SystemExit) as error:
        evaluate(*arguments)
    assert error.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said.split("\r")[-1]


def test_the_names_of_metrics_are_those_that_are_measured():
    assert (*metrics.METRICS, "bits_per_dimension", "validation_loss") == METRICS
    (literal,) = {a for a in typing.get_args(Evaluate.model_fields["metrics"].annotation) if a is not Ellipsis}
    assert typing.get_args(literal) == tuple(metrics.METRICS)


def test_help_answers_without_torch():
    code = "import sys; from ddpm_hf.cli import main\ntry: main(['evaluate', '--help'])\nfinally: assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


# ---- several processes

ROOT = Path(__file__).parent.parent


def launch(launcher, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *LAUNCHERS[launcher], "ddpm_hf", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


ONE = "--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
LAUNCHERS = {
    "python": ["-m"],
    "accelerate": f"-m accelerate.commands.launch {ONE} -m".split(),
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"],
}


@pytest.mark.slow
def test_5001_images_with_batch_64_on_one_and_on_two_processes(make_run, extractor):
    """5,001 distinct images, and equal metrics: an image may differ by a gray level where its batch does, which moves a
    distance by less than 1e-4 of itself."""
    run = make_run(**{"model.block_out_channels": [8, 16], "model.norm_num_groups": 4})
    options = ["--extractor", extractor, "--num_images", 5001, "--batch_size", 64, "--metrics", "frechet", "kernel"]
    records = {}
    for launcher, processes in (("python", 1), ("torchrun", 2)):
        done = launch(launcher, run, *options, *FAST, "--neighbours", f"{launcher}.png", "--out", f"{launcher}.json")
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("record in") == 1  # the main process alone tells
        records[launcher] = json.loads(Path(f"{launcher}.json").read_text())
        assert records[launcher]["num_images"] == records[launcher]["distinct_images"] == 5001
        assert records[launcher]["processes"] == processes
    assert records["torchrun"]["metrics"] == pytest.approx(records["python"]["metrics"], rel=1e-4, abs=1e-7)
    # the second one found the first one's statistics of the reference
    assert [records[name]["reference_was_cached"] for name in ("python", "torchrun")] == [False, True]


@pytest.mark.slow
def test_two_processes_measure_everything_and_tell_a_mistake_once(make_run, extractor):
    overrides = {"data.held_out": 0.05, "diffusion.num_train_timesteps": 10, "condition.num_classes": 10}
    run = make_run(**overrides)
    every = ["frechet", "score", "class_agreement", "bits_per_dimension", "validation_loss"]
    options = ["--extractor", extractor, "--num_images", 41, "--metrics", *every, "--likelihood_images", 9]
    found = {}
    for launcher in ("torchrun", "accelerate"):  # the first trains the classifier, on one of its processes
        done = launch(launcher, run, *options, *FAST, "--out", f"{launcher}.json", "--classifier", "classifier")
        assert done.returncode == 0, done.stderr[-2000:]
        found[launcher] = json.loads(Path(f"{launcher}.json").read_text())["metrics"]
    assert found["torchrun"] == pytest.approx(found["accelerate"], rel=1e-4)
    done = launch("torchrun", run, "--extractor", "nowhere.pt")
    assert done.returncode != 0
    assert done.stderr.count("error: --extractor: nowhere.pt: no such file") == 1
