"""Images from seeds, with a model from a run folder, a pipeline folder or the Hub."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils.logging import disable_progress_bar

from ddpm_hf.diffusion.samplers import build_sampler, num_steps
from ddpm_hf.errors import UserError
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline


def load_model(source: str) -> tuple[ModelMixin, SchedulerMixin]:
    """Denoiser (float32, eval) and training schedule from a run folder, a pipeline folder or a Hub id."""
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
        pipe = DiffusionPipeline.from_pretrained(source)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{source}: cannot be loaded as a Diffusers pipeline: {str(error).strip().splitlines()[0]}"
        ) from None
    if set(pipe.components) != {"unet", "scheduler"}:
        raise UserError(f"{source}: a {type(pipe).__name__}, which has more parts than a denoiser and a scheduler")
    return pipe.unet.eval(), pipe.scheduler


def build_pipeline(denoiser: ModelMixin, trained: SchedulerMixin, sampler: str) -> ImageGenerationPipeline:
    pipe = ImageGenerationPipeline(denoiser, build_sampler(sampler, trained))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_images(
    pipe: ImageGenerationPipeline,
    seeds: Sequence[int],
    batch_size: int,
    sampler: str,
    steps: int | None,
    progress: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """One image a seed, uint8 (N, C, H, W), in the order of `seeds`, rounded as a saved PNG would be.

    An image follows from its seed alone: it has a generator of its own, on the CPU whatever the device.
    `progress` is called after each denoising step with the number of images that took it.
    """
    steps = num_steps(sampler, steps, pipe.scheduler)
    drawn = []
    for start in range(0, len(seeds), batch_size):
        batch = seeds[start : start + batch_size]
        generators = [torch.Generator().manual_seed(seed) for seed in batch]
        report = partial(_report, progress, len(batch))
        images = pipe(len(batch), generators, steps, output_type="pt", callback_on_step_end=report).images
        drawn.append((images * 255).round().to("cpu", torch.uint8).numpy())
    return np.concatenate(drawn)


def _report(progress: Callable[[int], None], images: int, *_: object) -> None:
    progress(images)


def draw_strip(
    pipe: ImageGenerationPipeline, seeds: Sequence[int], sampler: str, steps: int | None, columns: int = 10
) -> np.ndarray:
    """The denoising film strip: uint8 (N, columns, C, H, W), from pure noise to the image, one row a seed."""
    steps = num_steps(sampler, steps, pipe.scheduler)
    columns = min(columns, steps + 1)
    shown = np.linspace(0, steps, columns).round().astype(int)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    # drawn here as the pipeline would, so that the strip can begin with it
    noise = torch.stack([torch.randn(1, *shape, generator=g)[0] for g in generators])
    states = [noise]

    def keep(_pipe, i: int, _t, tensors: dict) -> None:
        if i + 1 in shown:
            states.append(tensors["latents"].cpu())

    pipe(len(seeds), generators, steps, latents=noise, output_type="pt", callback_on_step_end=keep)
    images = torch.stack(states, dim=1)  # float32 (N, columns, C, H, W)
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
