"""Work that all processes share, so that none waits for another."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import ModelMixin
from tqdm import tqdm

from ddpm_hf.codec import AutoencoderCodec, PixelCodec
from ddpm_hf.data.dataset import Batch
from ddpm_hf.diffusion.objective import Objective
from ddpm_hf.errors import ProcessError
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, draw_images
from ddpm_hf.training.examples import Examples


@torch.no_grad()
def validation_loss(
    denoiser: ModelMixin,
    objective: Objective,
    codec: PixelCodec | AutoencoderCodec,
    examples: Examples,
    batch_size: int,
    accelerator: Accelerator,
    null_class: int | None = None,
) -> float:
    """The mean loss of the images to validate with; their timesteps and noise are the same each time.

    With `null_class` in place of every label, if given.
    """
    device = accelerator.device
    sums = torch.zeros(2, device=device)
    for number, batch in validation_batches(examples, batch_size, accelerator):
        torch.manual_seed(number)
        x0, labels = codec.encode(batch["records"].to(device)), batch["labels"].to(device)
        if null_class is not None:
            labels = torch.full_like(labels, null_class)
        loss = objective.validation(denoiser, x0, labels, accelerator.autocast)
        sums += torch.stack([loss.sum(), torch.tensor(float(len(loss)), device=device)])
    total, count = accelerator.reduce(sums, "sum").tolist()
    return total / count


def validation_batches(examples: Examples, batch_size: int, accelerator: Accelerator) -> Iterator[tuple[int, Batch]]:
    """This process's share of the batches, each with its number."""
    indices = examples.validation_indices
    starts = range(0, len(indices), batch_size)
    bar = tqdm(starts, "validating", leave=False, dynamic_ncols=True, disable=not accelerator.is_main_process)
    for number, start in enumerate(bar):
        if number % accelerator.num_processes == accelerator.process_index:
            yield number, examples.validation.plain(indices[start : start + batch_size])


def draw_together(
    pipe: ImageGenerationPipeline, seeds: Sequence[int], batch_size: int, sampling: Sampling, accelerator: Accelerator
) -> np.ndarray:
    """One image a seed, uint8 (N, C, H, W), on every process; each draws a share of them."""
    mine = seeds[accelerator.process_index :: accelerator.num_processes]
    try:
        with accelerator.autocast():
            images = draw_images(pipe, mine, batch_size, sampling) if mine else []
    except torch.OutOfMemoryError:
        raise ProcessError(f"out of memory while drawing samples: lower sample.batch_size, {batch_size}") from None
    drawn = dict(gather_object(list(zip(mine, images, strict=True))))
    return np.stack([drawn[seed] for seed in seeds])
