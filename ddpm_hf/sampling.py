"""Images from seeds, with a model from a run folder, a pipeline folder or the Hub."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar

from ddpm_hf.build import DENOISERS, num_classes_of
from ddpm_hf.config import Sample
from ddpm_hf.diffusion.samplers import build_sampler, num_steps
from ddpm_hf.errors import UserError
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    `steps`: None for the sampler's own number. `class_label`: an id or a name; None gives image i of a conditional
    model the class `seed mod num_classes`. The rest as in the pipeline's call.
    """

    sampler: str = "ddpm"
    steps: int | None = None
    eta: float = 0.0
    class_label: int | str | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None

    @classmethod
    def of_recipe(cls, sample: Sample) -> "Sampling":
        return cls(sample.sampler, sample.steps, sample.eta, None, sample.guidance_scale, sample.guidance_interval)


# ---- loading


def load_pipeline(source: str) -> ImageGenerationPipeline:
    """Denoiser (float32, eval) and training schedule from a run folder, a pipeline folder or a Hub id.

    Code that lies beside the weights is never run: this package has its own of the same name, or refuses.
    """
    path = Path(source)
    if (path / "checkpoints").is_dir() or (path / "recipe.yaml").is_file():
        if not (path / "pipeline" / "model_index.json").is_file():
            raise UserError(f"{source}: this run has no pipeline yet; it is saved with the first checkpoint")
        source = str(path / "pipeline")
    elif path.exists() and not (path / "model_index.json").is_file():
        raise UserError(f"{source}: neither a run folder (recipe.yaml) nor a pipeline folder (model_index.json)")
    elif not path.exists() and (source.startswith((".", "/", "~", "runs/")) or source.count("/") != 1):
        raise UserError(
            f"{source}: no such folder; give a run folder, a pipeline folder or a Hub id such as google/ddpm-cifar10-32"
        )
    disable_progress_bar()  # of loading, which takes a moment
    try:
        index = DiffusionPipeline.load_config(source)
        pipe = _load(source, {name: entry for name, entry in index.items() if isinstance(entry, (list, tuple))}, index)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{source}: cannot be loaded as a Diffusers pipeline: {str(error).strip().splitlines()[0]}"
        ) from None
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _load(source: str, parts: dict[str, list], index: dict) -> ImageGenerationPipeline:
    """`parts` are the index's entries [library, class]; nothing is downloaded before they are known to fit."""
    class_of = {name: entry[1] for name, entry in parts.items() if len(entry) == 2 and entry[1] is not None}
    own = class_of.pop("_class_name", None)
    named = own is not None or isinstance(index.get("_class_name"), str)
    if not named or set(class_of) - {"vae"} != {"unet", "scheduler"} or ("vae" in class_of and own is None):
        raise UserError(
            f"{source}: a {own or index.get('_class_name')}, which is not made of a denoiser and a scheduler alone"
        )
    known = {cls.__name__: cls for cls in DENOISERS.values()}
    if own not in (None, ImageGenerationPipeline.__name__) or class_of["unet"] not in known:
        raise UserError(
            f"{source}: a {own or index['_class_name']} with a {class_of['unet']}, which needs code of its own; load it in"
            " Diffusers with trust_remote_code=True if you trust it"
        )
    scheduler = getattr(diffusers, class_of["scheduler"], None)
    if scheduler is None or not {"trained_betas", "beta_schedule"} <= set(signature(scheduler).parameters):
        raise UserError(f"{source}: a {class_of['scheduler']}, whose noise schedule is not one of betas")
    loaded = {
        "unet": known[class_of["unet"]].from_pretrained(source, subfolder="unet"),
        "scheduler": scheduler.from_pretrained(source, subfolder="scheduler"),
    }
    if "vae" in class_of:
        loaded["vae"] = AutoencoderKL.from_pretrained(source, subfolder="vae")
    settings = {name: index.get(name) for name in ("num_classes", "id2label", "variance_exponent")}
    if num_classes_of(loaded["unet"]) != settings["num_classes"]:
        raise UserError(f"{source}: its denoiser has {num_classes_of(loaded['unet'])} classes, its index names"
            f" {settings['num_classes']}")  # fmt: skip
    return ImageGenerationPipeline(**loaded, **settings)


# ---- drawing


def draw_images(
    pipe: ImageGenerationPipeline,
    seeds: Sequence[int],
    batch_size: int,
    sampling: Sampling,
    progress: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """One image a seed, uint8 (N, C, H, W), in the order of `seeds`, rounded as a saved PNG would be.

    An image follows from its seed alone: it has a generator of its own, on the CPU whatever the device.
    `progress` is called after each forward pass of the denoiser with the number of images that took it.
    """
    drawn = []
    for start in range(0, len(seeds), batch_size):
        batch = seeds[start : start + batch_size]
        images = _draw(pipe, batch, sampling, callback_on_step_end=partial(_report, progress, len(batch)))
        drawn.append((images * 255).round().to("cpu", torch.uint8).numpy())
    return np.concatenate(drawn)


def passes(pipe: ImageGenerationPipeline, sampling: Sampling) -> int:
    """Forward passes that an image takes, a guided one counted once."""
    steps = num_steps(sampling.sampler, sampling.steps, pipe.scheduler)
    return 2 * steps - 1 if sampling.sampler == "heun" else steps


def labels_of(pipe: ImageGenerationPipeline, seeds: Sequence[int], sampling: Sampling) -> list[int] | None:
    """The class of each seed's image, None for an unconditional model."""
    if pipe.config.num_classes is None:
        return None
    if sampling.class_label is None:
        return [seed % pipe.config.num_classes for seed in seeds]
    return [pipe.label_id(sampling.class_label)] * len(seeds)


def draw_strip(
    pipe: ImageGenerationPipeline,
    seeds: Sequence[int],
    sampling: Sampling,
    columns: int = 10,
    progress: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """The denoising film strip: uint8 (N, columns, C, H, W), from pure noise to the image, one row a seed."""
    steps = passes(pipe, sampling)
    columns = min(columns, steps + 1)
    shown = np.linspace(0, steps, columns).round().astype(int)
    size = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    # drawn here as the pipeline would, so that the strip can begin with it
    generators = _generators(seeds)
    noise = torch.stack([torch.randn(1, *shape, generator=g)[0] for g in generators])
    states = [noise]

    def keep(_pipe, i: int, _t, tensors: dict) -> None:
        if i + 1 in shown:
            states.append(tensors["latents"].cpu())
        progress(len(seeds))

    _draw(pipe, seeds, sampling, generator=generators, latents=noise, callback_on_step_end=keep)
    images = torch.stack(states, dim=1)  # float32 (N, columns, C, H, W)
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _draw(pipe: ImageGenerationPipeline, seeds: Sequence[int], sampling: Sampling, **options) -> torch.Tensor:
    """Images, float32 (N, C, H, W) in [0, 1]; the pipeline itself is left as it was."""
    drawing = ImageGenerationPipeline(
        pipe.unet,
        build_sampler(sampling.sampler, pipe.scheduler),
        pipe.vae,
        pipe.config.num_classes,
        pipe.config.id2label,
        pipe.config.variance_exponent,
    )
    drawing.set_progress_bar_config(disable=True)
    call = {
        "batch_size": len(seeds),
        "class_labels": labels_of(pipe, seeds, sampling),
        "guidance_scale": sampling.guidance_scale,
        "guidance_interval": sampling.guidance_interval,
        "num_inference_steps": num_steps(sampling.sampler, sampling.steps, pipe.scheduler),
        "generator": _generators(seeds),
        "eta": sampling.eta,
        "output_type": "pt",
    }
    images = drawing(**(call | options)).images
    if not images.isfinite().all():
        raise UserError(
            f"the model's images are not finite with {sampling.sampler} and {call['num_inference_steps']} steps"
        )
    return images


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _report(progress: Callable[[int], None], images: int, *_: object) -> None:
    progress(images)
