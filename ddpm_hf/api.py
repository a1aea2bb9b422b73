"""The public Python interface, offered as `ddpm_hf.…`: what the commands do, as functions.

Mistakes, and a full disk, raise `UserError` with one line: what is wrong, and what would be right.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import ddpm_hf
from ddpm_hf import config
from ddpm_hf.config import AnyRecipe, AutoencoderRecipe, did_you_mean, recipe_kind, setting_keys
from ddpm_hf.devices import device_of
from ddpm_hf.errors import UserError, full_disks_told
from ddpm_hf.loading import load_pipeline
from ddpm_hf.measuring import Request, measure
from ddpm_hf.metric_names import DEFAULT_METRICS, METRICS
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.publishing import publish as publishing
from ddpm_hf.sampling import Sampling, checked, draw
from ddpm_hf.training.accelerator import own_accelerator
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.script import warn

PRECISIONS = ("no", "bf16", "fp16")
Source = str | Path  # a run folder, a pipeline folder or a Hub id

_OTHER_NAMES = {"class": "class_label", "variant": "variants"}


def _one_line_mistakes(function: Callable) -> Callable:
    """A full disk is a `UserError`, whose messages name a command's options; here they are arguments."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            with full_disks_told():
                return function(*args, **kwargs)
        except UserError as error:
            text = re.sub(r"(?<!\S)--([a-z_]+)", lambda found: _OTHER_NAMES.get(found[1], found[1]), str(error))
            raise type(error)(text) from None

    return wrapped


@_one_line_mistakes
def load_recipe(name_or_path: Source, overrides: Mapping[str, Any] | None = None) -> AnyRecipe:
    """A recipe file, or one that comes with the package, with some settings changed.

    name_or_path: a YAML file, or a name such as "quickstart", "latent/digits" or "reports/peng_cfg_ema"
    overrides: settings by section and name, `{"train.max_steps": 100, "data.resolution": [32, 32]}`, with values of the
        types that `python train_unconditional.py --help` lists

    A `Recipe`, or of an autoencoder an `AutoencoderRecipe`: typed, checked, not to be changed in place.
    Raises `UserError` for an unknown recipe or setting, a wrong value, or settings that contradict one another.
    """
    kind = recipe_kind(name_or_path)
    for key in overrides or {}:
        if key not in (keys := setting_keys(kind)):
            raise UserError(f"{key}: no such setting{did_you_mean(str(key), list(keys))}")
    return config.load_recipe(name_or_path, dict(overrides or {}), kind)


@_one_line_mistakes
def train(recipe: AnyRecipe) -> Path:
    """Trains a recipe's model to its end; a denoiser of pixels or of latents, or an autoencoder, as the recipe says.

    The run folder, `<run.output_dir>/<run.name>`. The same call again goes on from its newest whole checkpoint, and does
    nothing where the run is complete. Several trainings may follow one another in a process, but not in the several
    processes of a launcher. torch's default generators are seeded by it.

    Raises `UserError` before the first step for a run folder that is in use or was begun with another recipe, for images
    that do not fit the recipe, and for hardware without the recipe's precision; while training for weights that are no
    longer finite, a full disk or memory. Ctrl-C while it trains (a notebook's "interrupt") lets it finish the step under
    way, saves a checkpoint and raises `KeyboardInterrupt("stopped and saved; …")`; without these words nothing more was
    saved: images were still being prepared, or it was a second Ctrl-C. SIGTERM does as the first, and raises `SystemExit`.
    Source: Ho et al. (2020), algorithm 1; `ddpm_hf.training.loop`.
    """
    if not isinstance(recipe, AnyRecipe):
        raise UserError(f"recipe: {recipe!r} should be a recipe, such as ddpm_hf.load_recipe gives")
    if isinstance(recipe, AutoencoderRecipe):
        name = "train_autoencoder"
    else:
        name = "train_unconditional" if recipe.autoencoder.source is None else "train_cfg_latent"
        warn(recipe)
    script = _script(name)
    try:
        with own_accelerator():
            script.train(recipe)
    except SystemExit as end:
        if end.code != 130:
            raise
        raise KeyboardInterrupt("stopped and saved; the same call goes on") from None
    return RunFolder(recipe).path


@_one_line_mistakes
def load_model(source: Source, device: str | torch.device | None = None) -> ImageGenerationPipeline:
    """The model of a run folder, a pipeline folder or a Hub id: averaged weights, float32, ready to draw.

    device: such as "cpu" or "cuda:1"; None for a GPU if there is one

    A Diffusers pipeline with `unet`, `scheduler` and, of latents, `vae`. Code that lies beside the weights is never run.
    Raises `UserError` for what is no such place, needs code of its own, or cannot be reached, and for an unknown device.
    """
    device = device_of(device)
    return load_pipeline(str(source)).to(device)


@_one_line_mistakes
def sample(
    model: Source | ImageGenerationPipeline,
    num_images: int = 16,
    *,
    seed: int = 0,
    class_label: int | str | None = None,
    sampler: str = "ddpm",
    steps: int | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    eta: float = 0.0,
    batch_size: int = 64,
) -> np.ndarray:
    """Images, uint8 (num_images, C, H, W), as `ddpm-hf sample` draws them.

    model: of `load_model`, on its device; or where one is, which is loaded for this call
    seed: at least 0; image i follows from seed + i alone, whatever `num_images` and `batch_size`
    class_label: an id, a name, or the null class's id `num_classes`; None for every class in turn, seed modulo their
        number; of an unconditional model nothing else
    sampler: "ddpm", "ddim", "dpmsolver++", "unipc" or "heun"
    steps: 1 to the model's number of timesteps; None for all of them with ddpm, else 50
    guidance_scale: s >= 0 of classifier-free guidance, uncond + s (cond - uncond) (Ho & Salimans 2022, w = s - 1); 1 is off
    guidance_interval: guide only between these noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar), low before high
        (Kynkäänniemi et al. 2024); None for everywhere
    eta: noise of ddim's steps, 0 to 1 (Song et al. 2021)
    batch_size: images drawn at once; one that does not fit in memory raises `UserError`

    Raises `UserError` for any of these out of range, and where the images are not finite.
    """
    num_images, seed = _whole("num_images", num_images, 1), _whole("seed", seed, 0)
    if not isinstance(model, Source | ImageGenerationPipeline):
        raise UserError(f"model: a {type(model).__name__} should be what ddpm_hf.load_model gives, or where a model is")
    pipe = model if isinstance(model, ImageGenerationPipeline) else load_model(model)
    asked = _sampling(sampler, steps, eta, class_label, guidance_scale, guidance_interval)
    seeds = range(seed, seed + num_images)
    images, _ = draw(pipe, seeds, _whole("batch_size", batch_size, 1), checked(pipe, asked))
    return images


@_one_line_mistakes
def evaluate(
    model: Source,
    *,
    reference: Source | None = None,
    reference_images: int | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    num_images: int | None = None,
    extractor: str = "inception",
    extractor_weights: Source | None = None,
    classifier: str | None = None,
    likelihood_images: int = 256,
    batch_size: int = 64,
    sampler: str = "ddpm",
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    class_label: int | str | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    precision: str = "no",
    device: str | torch.device | None = None,
    neighbours: Source | None = None,
    out: Source | None = None,
) -> dict[str, Any]:
    """Measures a model's images against real ones; the record that `ddpm-hf evaluate` writes, which is written here too.

    model: a run folder, a pipeline folder or a Hub id; or images: a folder, or an .npz file of `ddpm-hf sample`
    reference: "train" or "validation", of a run; a folder of images or an .npz file; a recipe, whose training images are
        meant; or "cleanfid:NAME:RES:SPLIT"; None for a run's training images
    reference_images: compare with so many of them, chosen by chance; None for all
    metrics: of "frechet", "kernel", "score", "precision_recall", "density_coverage", "class_agreement",
        "bits_per_dimension", "validation_loss"
    num_images: to draw, or to take from a folder by chance; None for 5,000 drawn, or the whole folder
    extractor, classifier: "inception", "dinov2", "efficientnet_lite0", "classifier" or a TorchScript file; the first for
        features, the second for class_agreement
    extractor_weights: a file, folder or Hub id; None where they are found or downloaded
    likelihood_images: real images that bits_per_dimension is measured on
    batch_size, sampler, steps, eta, seed, class_label, guidance_scale, guidance_interval: as `sample` takes them
    precision: "no", "bf16" or "fp16" of the denoiser; device: as `load_model` takes it
    neighbours: a .png file for the first 16 samples beside the reference images nearest to them
    out: the record's .json file; None for one in `evaluations/`, of the run folder or here

    `record["metrics"]` has the values by name; docs/evaluation.md says what each means, its unit, range and source, and
    what else a record holds. Raises `UserError` for a mistake before the first image is drawn. Of a launcher's several
    processes the main one gets the record, the others an empty one.
    """
    if not isinstance(model, Source):
        raise UserError(
            f"model: a {type(model).__name__} should be where a model or images are, which the record names"
        )
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in metrics:
        if name not in METRICS:
            hint = did_you_mean(str(name), list(METRICS)) or f"; choose from {', '.join(METRICS)}"
            raise UserError(f"metrics: {name!r} is no metric{hint}")
    if precision not in PRECISIONS:
        raise UserError(f"precision: {precision!r} should be one of {', '.join(PRECISIONS)}")
    counts = {"num_images": num_images, "reference_images": reference_images}
    texts = {"reference": reference, "extractor_weights": extractor_weights, "neighbours": neighbours, "out": out}
    texts |= {"device": device}
    measured = measure(
        Request(
            str(model),
            metrics=metrics,
            extractor=extractor,
            classifier=classifier,
            likelihood_images=_whole("likelihood_images", likelihood_images, 1),
            batch_size=_whole("batch_size", batch_size, 1),
            sampling=_sampling(sampler, steps, eta, class_label, guidance_scale, guidance_interval),
            seed=_whole("seed", seed, 0),
            precision=precision,
            **{name: None if count is None else _whole(name, count, 1) for name, count in counts.items()},
            **{name: None if text is None else str(text) for name, text in texts.items()},
        )
    )
    if measured is None:
        return {}
    measured.write()
    return measured.record


@_one_line_mistakes
@wraps(publishing.publish)
def publish(run: Source, *args: Any, variants: str | Sequence[str] = (), **kwargs: Any) -> Path:
    if not isinstance(run, Source):
        raise UserError(f"run: a {type(run).__name__} should be a run folder, such as ddpm_hf.train gives")
    return publishing.publish(run, *args, variants=[variants] if isinstance(variants, str) else variants, **kwargs)


def _script(name: str) -> ModuleType:
    """The training script that comes with this package; another of its name, as one of Diffusers' examples has, is not run."""
    found, ours = find_spec(name), Path(ddpm_hf.__file__).parent.parent / f"{name}.py"
    if found is None or found.origin is None or not ours.is_file() or not ours.samefile(found.origin):
        origin = "nothing" if found is None else found.origin
        raise UserError(f"{origin} is found in place of this package's {name}.py; rename it, or start elsewhere")
    return import_module(name)


def _sampling(
    sampler: str,
    steps: int | None,
    eta: float,
    class_label: int | str | None,
    guidance_scale: float,
    guidance_interval: tuple[float, float] | None,
) -> Sampling:
    for name, value in (("eta", eta), ("guidance_scale", guidance_scale)):
        if not (isinstance(value, Real) and value >= 0):
            raise UserError(f"{name}: {value!r} should be a number of at least 0")
    steps, interval = None if steps is None else _whole("steps", steps, 1), guidance_interval
    if interval is not None and not (
        isinstance(interval, Sequence)
        and len(interval) == 2
        and all(isinstance(end, Real) and end >= 0 for end in interval)
    ):
        raise UserError(f"guidance_interval: {interval!r} should be a pair of noise levels, the lower first")
    # floats of NumPy too, which JSON does not know
    interval = None if interval is None else (float(interval[0]), float(interval[1]))
    return Sampling(sampler, steps, float(eta), class_label, float(guidance_scale), interval)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise UserError(f"{name}: {value!r} should be a whole number of at least {least}")
    return int(value)  # of NumPy too
