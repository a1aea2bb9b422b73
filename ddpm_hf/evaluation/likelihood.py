"""Bits per dimension of real images, by a pipeline alone: what it was trained with stands in its scheduler's config."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import PartialState
from tqdm import tqdm

from ddpm_hf.diffusion.likelihood import bits_per_dimension as bound
from ddpm_hf.diffusion.process import DiffusionProcess
from ddpm_hf.errors import ProcessError, UserError
from ddpm_hf.evaluation.extraction import from_main, gather_to_main
from ddpm_hf.evaluation.images import Images
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

_FRACTIONS = {"fixed_small": 0.0, "fixed_small_log": 0.0, "fixed_large": 1.0, "fixed_large_log": 1.0}


def check_likelihood(pipe: ImageGenerationPipeline) -> None:
    """Raises `UserError` for a model whose images have no variational bound in bits."""
    if pipe.vae is not None:
        raise UserError("bits_per_dimension: is of 8-bit pixels; this model works on latents, leave it out")
    kind = pipe.scheduler.config.get("variance_type", "fixed_small")
    if kind not in (*_FRACTIONS, "learned_range"):
        raise UserError(f"bits_per_dimension: is not known for a reverse step of variance_type {kind}; leave it out")


def bits_per_dimension(
    pipe: ImageGenerationPipeline,
    images: Images,
    state: PartialState,
    *,
    batch_size: int = 64,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, float]:
    """The variational bound on `images`' negative log-likelihood (Ho et al. 2020, equation 5): mean and standard error.

    Takes T forward passes an image, shared by all processes. The noise of image i follows from i alone. A conditional
    model is told the images' labels where they are of its own classes, else the null class.
    """
    check_likelihood(pipe)
    process = DiffusionProcess(pipe.scheduler.betas, state.device)
    config = pipe.scheduler.config
    labels = _labels(pipe, images)
    mine = list(range(len(images)))[state.process_index :: state.num_processes]
    values = {}
    with tqdm(
        total=len(mine) * process.T,
        unit=" image step",
        desc=f"bits per dimension: {len(images)} images, {process.T} steps",
        dynamic_ncols=True,
        disable=not state.is_main_process,
    ) as bar:
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            generators = [torch.Generator().manual_seed(i) for i in batch]
            try:
                x0 = images.read(batch).to(state.device).float() / 127.5 - 1  # float32 (N, C, H, W) in [-1, 1]
                theirs = None if labels is None else labels[batch].to(state.device)
                bits, _ = bound(
                    process,
                    _predictor(pipe, theirs, autocast),
                    x0,
                    config.prediction_type,
                    generators,
                    clip=config.get("clip_sample", True),
                    progress=bar.update,
                )
            except torch.OutOfMemoryError:
                raise ProcessError(f"out of memory on {state.device}: lower --batch_size, {batch_size}") from None
            except UserError as error:
                raise ProcessError(str(error)) from None  # which the other processes know nothing of
            values |= dict(zip(batch, bits.tolist(), strict=True))
    shares = gather_to_main(values, state)
    if shares is None:
        return from_main(None, state)
    of_image = {i: value for share in shares for i, value in share.items()}
    bits = torch.tensor([of_image[i] for i in sorted(of_image)], dtype=torch.float64)
    found = {"bits_per_dimension": bits.mean().item()}
    if len(bits) > 1:
        found["bits_per_dimension_standard_error"] = (bits.std() / math.sqrt(len(bits))).item()
    return from_main(found, state)


def _labels(pipe: ImageGenerationPipeline, images: Images) -> torch.Tensor | None:
    """int64 (N,), None of an unconditional model."""
    num_classes, names = pipe.config.num_classes, pipe.config.id2label
    if num_classes is None:
        return None
    same = images.class_names is not None and len(images.class_names) == num_classes
    if same and names is not None:
        same = [names.get(str(i)) for i in range(num_classes)] == list(images.class_names)
    if not same or (images.labels < 0).any():
        return torch.full((len(images),), num_classes)
    return torch.from_numpy(images.labels)


def _predictor(
    pipe: ImageGenerationPipeline, labels: torch.Tensor | None, autocast: Callable[[], AbstractContextManager]
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | float]]:
    """The denoiser's prediction, (N, C, H, W), and where the log variance lies between beta tilde (0) and beta (1)."""
    kind = pipe.scheduler.config.get("variance_type", "fixed_small")

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        told = {} if labels is None else {"class_labels": labels}
        with autocast():
            output = pipe.unet(x_t.to(pipe.unet.dtype), t, **told).sample
        output, channels = output.to(x_t.dtype), x_t.shape[1]
        prediction, variance = output[:, :channels], output[:, channels:]
        if variance.shape[1]:
            return prediction, (variance + 1) / 2  # the network gives v of equation 15 as [-1, 1]
        return prediction, _FRACTIONS.get(kind, pipe.config.variance_exponent)

    return predict
