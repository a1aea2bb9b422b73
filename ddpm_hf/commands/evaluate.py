"""`ddpm-hf evaluate`."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from accelerate import PartialState

from ddpm_hf.codec import AutoencoderCodec, PixelCodec
from ddpm_hf.commands.shared import autocast_of, device_of, sampling_of
from ddpm_hf.config import Data, Recipe, load_recipe
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.evaluate import Values, build_evaluator, check_shape
from ddpm_hf.evaluation.image_files import ArchiveImages, FolderImages, holds_images
from ddpm_hf.evaluation.images import Chosen, DrawnImages, Images
from ddpm_hf.evaluation.likelihood import bits_per_dimension, check_likelihood
from ddpm_hf.evaluation.metrics import METRICS
from ddpm_hf.evaluation.records import about_model, record_of, settings_digest, settings_of, table, write_record
from ddpm_hf.evaluation.reference import PublishedStatistics, open_reference, pixels, validation_images
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

NUM_IMAGES = 5000
_SAMPLING = {  # options that mean nothing to images that are there already, and what they are if not given
    "sampler": "ddpm", "steps": None, "eta": 0.0, "seed": 0, "class_label": None, "guidance_scale": 1.0,
    "guidance_interval": None, "precision": "no",
}  # fmt: skip
_MODEL = ("weights", "autoencoder", "scheduler", "variance_exponent")  # of a record; None of images


@dataclass
class _Subject:
    """What is evaluated: images, and of a model what else is known. recipe: of a run folder."""

    images: Images
    folder: Path | None = None
    pipe: ImageGenerationPipeline | None = None
    recipe: Recipe | None = None

    @property
    def data(self) -> Data | None:
        """The recipe's data section for images, where the model works on latents too."""
        return self.recipe and pixels(self.recipe.data, self.recipe.autoencoder.source is not None)

    @property
    def seed(self) -> int:
        return 0 if self.recipe is None else self.recipe.run.seed


def evaluate(options: argparse.Namespace) -> None:
    """A record and a table, and the page of nearest reference images."""
    for option, suffix in (("out", ".json"), ("neighbours", ".png")):
        path = getattr(options, option)
        if path is not None and Path(path).suffix.lower() != suffix:
            raise UserError(f"--{option}: {path} should be a {suffix} file")
    state = _start(options.device)
    subject = _subject(options, state)
    of_images = [name for name in dict.fromkeys(options.metrics) if name in METRICS]
    others, about_others = _others(options, subject, state)
    evaluator = build_evaluator(
        of_images,
        subject.images,
        state,
        data=subject.data,
        seed=subject.seed,
        reference=_reference(options, subject),
        reference_images=options.reference_images,
        extractor=options.extractor,
        extractor_weights=options.extractor_weights,
        classifier=options.classifier,
        nearest=options.neighbours is not None,
    )
    images = subject.images if evaluator.extractor is not None else None
    settings = settings_of(evaluator, images, list(others)) | about_others
    about = _about(options.model, subject)
    if subject.pipe is not None:
        settings["precision"] = options.precision
    out = Path(options.out) if options.out else _place(subject, about, options.model, settings)
    _check_writable(out, "--out")
    if options.neighbours is not None:
        _check_writable(Path(options.neighbours), "--neighbours")
    evaluation = evaluator(subject.images, others, nearest=options.neighbours is not None)
    if state.is_main_process:
        record = record_of(about, settings, evaluation, state)
        print(table(record))
        write_record(out, record)
        print(f"record in {out}")
        if evaluation.nearest is not None:
            evaluation.nearest.picture().save(options.neighbours)
            among = f"the nearest of {len(evaluator.reference):,} reference images"
            print(f"the first samples beside {among} in {options.neighbours}")
    if state.num_processes > 1:
        state.destroy_process_group()


def _check_writable(file: Path, option: str) -> None:
    """Makes its folder. Raises `UserError` where the file could not be written once the images are drawn."""
    problem = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is None and file.is_dir():
        problem = "it is a folder"
    elif problem is None and not os.access(file if file.exists() else file.parent, os.W_OK):
        problem = "permission denied"
    if problem is not None:
        raise UserError(f"{option}: {file} cannot be written: {problem}")


def _start(device: str | None) -> PartialState:
    """This process among those of a launcher, or alone."""
    many = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if many and device not in (None, "cpu"):
        raise UserError(f"--device: {device} cannot be for each of several processes, which have devices of their own")
    found = device_of(device)
    # processes wait while the main one compares features, which may take a while
    state = PartialState(cpu=found.type == "cpu", timeout=timedelta(hours=6))
    if not many:
        state.device = found
    return state


def _subject(options: argparse.Namespace, state: PartialState) -> _Subject:
    path = Path(options.model).expanduser()
    is_run = (path / "recipe.yaml").is_file() or (path / "checkpoints").is_dir()
    is_images = path.is_dir() and not is_run and not (path / "model_index.json").is_file()
    if is_images or (path.suffix == ".npz" and path.is_file()):
        return _Subject(_given(options, path, is_images, state))
    autocast = autocast_of(options.precision, state.device)
    pipe = load_pipeline(options.model).to(state.device)
    sampling = sampling_of(pipe, options)
    number = options.num_images or NUM_IMAGES
    images = DrawnImages(
        pipe, number, sampling, first_seed=options.seed, batch_size=options.batch_size, autocast=autocast
    )
    return _Subject(images, path, pipe, _recipe(path) if is_run else None)


def _given(options: argparse.Namespace, path: Path, is_folder: bool, state: PartialState) -> Images:
    """Images that are there already."""
    if is_folder and not holds_images(path):
        raise UserError(
            f"{options.model}: holds no image files, and is neither a run folder (recipe.yaml) nor a pipeline folder"
            " (model_index.json)"
        )
    for name, default in _SAMPLING.items():
        if getattr(options, name) != default:
            option = "class" if name == "class_label" else name
            raise UserError(f"--{option}: is for a model that draws; {options.model} holds images, leave it out")
    images = (
        FolderImages(path, options.model, state.is_main_process) if is_folder else ArchiveImages(path, options.model)
    )
    if options.num_images is None or options.num_images == len(images):
        return images
    if options.num_images > len(images):
        raise UserError(f"--num_images: {options.num_images} are more than {options.model} has, {len(images)}")
    return Chosen(images, options.num_images)


def _recipe(folder: Path) -> Recipe | None:
    """A run's recipe, wherever the run folder has been moved; None where there is none yet."""
    if not (folder / "recipe.yaml").is_file():
        return None
    recipe, here = load_recipe(folder / "recipe.yaml"), folder.resolve()
    moved = recipe.run.model_copy(update={"output_dir": str(here.parent), "name": here.name})
    return recipe.model_copy(update={"run": moved})


def _reference(options: argparse.Namespace, subject: _Subject) -> str | None:
    return options.reference or (None if subject.recipe is None else "train")


def _about(model: str, subject: _Subject) -> dict:
    """What is known of the model."""
    from ddpm_hf.training.run_folder import RunFolder

    about = {"model": model, "step": None, "ema": None, **dict.fromkeys(_MODEL), "precision": None}
    if subject.pipe is not None:
        about |= about_model(subject.pipe)
    if subject.recipe is not None:
        state = RunFolder(subject.recipe).state()
        about |= {"step": state and state["step"], "ema": subject.recipe.ema.model_dump(mode="json")}
    return about


def _place(subject: _Subject, about: dict, model: str, settings: dict) -> Path:
    """Where the record goes that nobody named a file for: another model or other settings, another file."""
    step, name = about["step"], settings_digest(settings | {key: about[key] for key in _MODEL})
    if subject.recipe is not None:
        return subject.folder / "evaluations" / f"{name if step is None else f'step-{step:08d}-{name}'}.json"
    return Path("evaluations") / f"{Path(model).expanduser().resolve().name or 'images'}-{name}.json"


def _others(
    options: argparse.Namespace, subject: _Subject, state: PartialState
) -> tuple[dict[str, Callable[[], Values]], dict]:
    """What is not measured on the images, by name, and what a record says of it."""
    others, about = {}, {}
    for name in ("bits_per_dimension", "validation_loss"):
        if name in options.metrics and subject.pipe is None:
            raise UserError(f"--metrics: {name} is of a model; {options.model} holds images")
    if "bits_per_dimension" in options.metrics:
        check_likelihood(subject.pipe)
        images = _likelihood_images(options, subject, state)
        others["bits_per_dimension"] = partial(
            bits_per_dimension,
            subject.pipe,
            images,
            state,
            batch_size=options.batch_size,
            autocast=autocast_of(options.precision, state.device),
        )
        about["likelihood"] = images.describe() | {"num_images": len(images), "fingerprint": images.content}
    if "validation_loss" in options.metrics:
        others["validation_loss"] = _validation(options.model, subject)
    return others, about


def _likelihood_images(options: argparse.Namespace, subject: _Subject, state: PartialState) -> Images:
    """Those to validate on where a run has any, unless a reference is named."""
    data = subject.data
    if options.reference is None and data is not None and (data.held_out or data.validation_split):
        images = validation_images(data, subject.seed)
    elif (reference := _reference(options, subject)) is None:
        raise UserError("--reference: bits_per_dimension is measured on real images, and there is no recipe; name some")
    else:
        images = open_reference(reference, "--reference", data, subject.seed, progress=state.is_main_process)
    if isinstance(images, PublishedStatistics):
        raise UserError(f"--reference: bits_per_dimension is measured on images, and {images.called} has none")
    check_shape(images, subject.images)
    return Chosen(images, options.likelihood_images) if options.likelihood_images < len(images) else images


def _validation(model: str, subject: _Subject) -> Callable[[], Values]:
    """The loss as training computes it: the same images, batches, noise and precision."""
    from ddpm_hf.diffusion.schedule import build_scheduler
    from ddpm_hf.training.accelerator import build_accelerator
    from ddpm_hf.training.denoising import Denoising
    from ddpm_hf.training.examples import prepare_examples

    recipe, pipe = subject.recipe, subject.pipe
    if recipe is None or not (recipe.data.held_out or recipe.data.validation_split):
        raise UserError(
            f"--metrics: validation_loss is of a run that validates (data.held_out, data.validation_split); {model} is none"
        )
    codec = PixelCodec()
    if pipe.vae is not None:
        settings = recipe.autoencoder
        if settings.tiling:
            pipe.vae.enable_tiling()
        codec = AutoencoderCodec(pipe.vae, settings.gray_as_rgb, settings.batch_size)
    accelerator = build_accelerator(recipe)
    examples = prepare_examples(recipe, codec, is_main=accelerator.is_main_process)
    scheduler = build_scheduler(recipe.diffusion, clip_sample=pipe.vae is None)
    task = Denoising(recipe, pipe.unet, codec, scheduler, examples, accelerator)
    return partial(task.validate, pipe.unet)
