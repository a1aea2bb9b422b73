"""What `ddpm-hf evaluate` and `ddpm_hf.evaluate` do: a model or images, measured to a record."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import partial
from pathlib import Path

from accelerate import PartialState
from PIL import Image

from ddpm_hf.codec import AutoencoderCodec, PixelCodec
from ddpm_hf.config import Data, Recipe, load_recipe
from ddpm_hf.devices import autocast_of, device_of
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.evaluate import Values, build_evaluator, check_shape
from ddpm_hf.evaluation.image_files import ArchiveImages, FolderImages, holds_images
from ddpm_hf.evaluation.images import Chosen, DrawnImages, Images
from ddpm_hf.evaluation.likelihood import bits_per_dimension, check_likelihood
from ddpm_hf.evaluation.metrics import METRICS
from ddpm_hf.evaluation.records import about_model, record_of, settings_digest, settings_of, write_record
from ddpm_hf.evaluation.reference import PublishedStatistics, open_reference, pixels, validation_images
from ddpm_hf.loading import is_run, load_pipeline
from ddpm_hf.metric_names import DEFAULT_METRICS
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, checked
from ddpm_hf.training.accelerator import own_accelerator

NUM_IMAGES = 5000
_MODEL = ("weights", "autoencoder", "scheduler", "variance_exponent")  # of a record; None of images


@dataclass(frozen=True)
class Request:
    """What to measure: fields and defaults are the options of `ddpm-hf evaluate`, those of drawing in `sampling`."""

    model: str
    reference: str | None = None
    reference_images: int | None = None
    metrics: Sequence[str] = DEFAULT_METRICS
    num_images: int | None = None
    extractor: str = "inception"
    extractor_weights: str | None = None
    classifier: str | None = None
    likelihood_images: int = 256
    batch_size: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    precision: str = "no"
    device: str | None = None
    neighbours: str | None = None
    out: str | None = None


@dataclass(frozen=True)
class Measured:
    """A record, and where it goes; the page of nearest reference images, where it was asked for, likewise."""

    record: dict
    out: Path
    page: Image.Image | None
    page_file: Path | None

    def write(self) -> None:
        write_record(self.out, self.record)
        if self.page is not None:
            self.page.save(self.page_file)


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


def measure(asked: Request) -> Measured | None:
    """Finds mistakes first, then measures; nothing is written yet. All of a launcher's processes take part; the main one
    gets what came out, others None."""
    for option, suffix in (("out", ".json"), ("neighbours", ".png")):
        path = getattr(asked, option)
        if path is not None and Path(path).suffix.lower() != suffix:
            raise UserError(f"--{option}: {path} should be a {suffix} file")
    many = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if many and asked.device not in (None, "cpu"):
        raise UserError(
            f"--device: {asked.device} cannot be for each of several processes, which have devices of their own"
        )
    device = device_of(asked.device)
    with own_accelerator():
        # processes wait while the main one compares features, which may take a while
        state = PartialState(cpu=device.type == "cpu", timeout=timedelta(hours=6))
        if not many:
            state.device = device
        return _measure(asked, state)


def _measure(asked: Request, state: PartialState) -> Measured | None:
    subject = _subject(asked, state)
    of_images = [name for name in dict.fromkeys(asked.metrics) if name in METRICS]
    others, about_others = _others(asked, subject, state)
    evaluator = build_evaluator(
        of_images,
        subject.images,
        state,
        data=subject.data,
        seed=subject.seed,
        reference=_reference(asked, subject),
        reference_images=asked.reference_images,
        extractor=asked.extractor,
        extractor_weights=asked.extractor_weights,
        classifier=asked.classifier,
        nearest=asked.neighbours is not None,
    )
    images = subject.images if evaluator.extractor is not None else None
    settings = settings_of(evaluator, images, list(others)) | about_others
    about = _about(asked.model, subject)
    if subject.pipe is not None:
        settings["precision"] = asked.precision
    out = Path(os.path.expanduser(asked.out)) if asked.out else _place(subject, about, asked.model, settings)
    _check_writable(out, "--out")
    page_file = None if asked.neighbours is None else Path(os.path.expanduser(asked.neighbours))
    if page_file is not None:
        _check_writable(page_file, "--neighbours")
    evaluation = evaluator(subject.images, others, nearest=page_file is not None)
    measured = None
    if state.is_main_process:
        page = None if evaluation.nearest is None else evaluation.nearest.picture()
        measured = Measured(record_of(about, settings, evaluation, state), out, page, page_file)
    if state.num_processes > 1:
        state.destroy_process_group()
    return measured


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


def _subject(asked: Request, state: PartialState) -> _Subject:
    path = Path(os.path.expanduser(asked.model))
    of_run = is_run(path)
    is_images = path.is_dir() and not of_run and not (path / "model_index.json").is_file()
    if is_images or (path.suffix == ".npz" and path.is_file()):
        return _Subject(_given(asked, path, is_images, state))
    autocast = autocast_of(asked.precision, state.device)
    pipe = load_pipeline(asked.model).to(state.device)
    sampling = checked(pipe, asked.sampling)
    number = asked.num_images or NUM_IMAGES
    images = DrawnImages(pipe, number, sampling, first_seed=asked.seed, batch_size=asked.batch_size, autocast=autocast)
    return _Subject(images, path, pipe, _recipe(path) if of_run else None)


def _given(asked: Request, path: Path, is_folder: bool, state: PartialState) -> Images:
    """Images that are there already."""
    if is_folder and not holds_images(path):
        raise UserError(
            f"{asked.model}: holds no image files, and is neither a run folder (recipe.yaml) nor a pipeline folder"
            " (model_index.json)"
        )
    drawing = [(field.name, asked.sampling, Sampling()) for field in fields(Sampling)]
    for name, given, default in (*drawing, ("seed", asked, Request), ("precision", asked, Request)):
        if getattr(given, name) != getattr(default, name):
            option = "class" if name == "class_label" else name
            raise UserError(f"--{option}: is for a model that draws; {asked.model} holds images, leave it out")
    images = FolderImages(path, asked.model, state.is_main_process) if is_folder else ArchiveImages(path, asked.model)
    if asked.num_images is None or asked.num_images == len(images):
        return images
    if asked.num_images > len(images):
        raise UserError(f"--num_images: {asked.num_images} are more than {asked.model} has, {len(images)}")
    return Chosen(images, asked.num_images)


def _recipe(folder: Path) -> Recipe | None:
    """A run's recipe, wherever the run folder has been moved; None where there is none yet."""
    if not (folder / "recipe.yaml").is_file():
        return None
    recipe, here = load_recipe(folder / "recipe.yaml"), folder.resolve()
    moved = recipe.run.model_copy(update={"output_dir": str(here.parent), "name": here.name})
    return recipe.model_copy(update={"run": moved})


def _reference(asked: Request, subject: _Subject) -> str | None:
    return asked.reference or (None if subject.recipe is None else "train")


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
    return Path("evaluations") / f"{Path(os.path.expanduser(model)).resolve().name or 'images'}-{name}.json"


def _others(asked: Request, subject: _Subject, state: PartialState) -> tuple[dict[str, Callable[[], Values]], dict]:
    """What is not measured on the images, by name, and what a record says of it."""
    others, about = {}, {}
    for name in ("bits_per_dimension", "validation_loss"):
        if name in asked.metrics and subject.pipe is None:
            raise UserError(f"--metrics: {name} is of a model; {asked.model} holds images")
    if "bits_per_dimension" in asked.metrics:
        check_likelihood(subject.pipe)
        images = _likelihood_images(asked, subject, state)
        others["bits_per_dimension"] = partial(
            bits_per_dimension,
            subject.pipe,
            images,
            state,
            batch_size=asked.batch_size,
            autocast=autocast_of(asked.precision, state.device),
        )
        about["likelihood"] = images.describe() | {"num_images": len(images), "fingerprint": images.content}
    if "validation_loss" in asked.metrics:
        others["validation_loss"] = _validation(asked.model, subject)
    return others, about


def _likelihood_images(asked: Request, subject: _Subject, state: PartialState) -> Images:
    """Those to validate on where a run has any, unless a reference is named."""
    data = subject.data
    if asked.reference is None and data is not None and (data.held_out or data.validation_split):
        images = validation_images(data, subject.seed)
    elif (reference := _reference(asked, subject)) is None:
        raise UserError("--reference: bits_per_dimension is measured on real images, and there is no recipe; name some")
    else:
        images = open_reference(reference, "--reference", data, subject.seed, progress=state.is_main_process)
    if isinstance(images, PublishedStatistics):
        raise UserError(f"--reference: bits_per_dimension is measured on images, and {images.called} has none")
    check_shape(images, subject.images)
    return Chosen(images, asked.likelihood_images) if asked.likelihood_images < len(images) else images


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
