"""How well an autoencoder reconstructs, and how its latents are distributed."""

import math
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL

from ddpm_hf.errors import UserError


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """`x`, float32 (N, C, H, W) in [-1, 1], through the mean of its posterior and back: the same shape and range."""
    return autoencoder.decode(autoencoder.encode(x).latent_dist.mean).sample.float().clamp(-1, 1)


def psnr(reconstruction: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Each image's peak signal-to-noise ratio (N,) in dB, infinite for equal images.

    Of float32 (N, C, H, W) in [-1, 1], compared as the 8-bit images that they round to.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    images = _as_8_bit(reconstruction), _as_8_bit(x)
    return peak_signal_noise_ratio(*images, data_range=255.0, reduction="none", dim=(1, 2, 3))


def ssim(reconstruction: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Each image's structural similarity (N,), 1 for equal images (Wang et al. 2004, equation 13).

    Of float32 (N, C, H, W) in [-1, 1], compared as the 8-bit images that they round to; at least 3x3. The window is
    theirs, a Gaussian of 11x11 with standard deviation 1.5, where the image is as large; of a smaller image it is the
    largest odd size that fits, with the deviation in proportion. The mean is over channels and every pixel, the image
    mirrored at its edges (torchmetrics), where Wang et al. leave out the pixels whose window would reach beyond.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    radius = (min(11, *x.shape[-2:]) - 1) // 2
    # torchmetrics takes a Gaussian window's size from the deviation, int(3.5 * sigma + 0.5) on each side
    # in double precision: GPUs would round its convolutions' squares of 255 to ten bits
    images = _as_8_bit(reconstruction).double(), _as_8_bit(x).double()
    return structural_similarity_index_measure(*images, sigma=0.3 * radius, data_range=255.0, reduction="none").float()


def _as_8_bit(x: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to whole numbers of [0, 255], float32."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255)


@torch.no_grad()
def measure_latents(autoencoder: AutoencoderKL, batches: Iterable[torch.Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of all elements of posterior samples, from `batches` of float32 (N, C, H, W).

    Exact, in float64 and without sampling: the variance is that of the posteriors' means plus the mean of the
    posteriors' variances. One batch is in memory at a time. Raises `UserError` where no denoiser could work on them.
    """
    count, sums = 0, torch.zeros(3, dtype=torch.float64)
    for x in batches:
        posterior = autoencoder.encode(x.to(autoencoder.device)).latent_dist
        mean, variance = posterior.mean.cpu().double(), posterior.logvar.cpu().double().exp()
        sums += torch.stack([mean.sum(), mean.square().sum(), variance.sum()])
        count += mean.numel()
    mean, square, variance = (sums / count).tolist()
    std = math.sqrt(max(square - mean**2, 0) + variance)
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise UserError(
            f"the autoencoder's latents have mean {mean} and standard deviation {std}: no denoiser can work on them"
        )
    return mean, std


def with_scale(autoencoder: AutoencoderKL, mean: float, std: float) -> AutoencoderKL:
    """Writes into its config how its latents z become a denoiser's, (z - shift_factor) * scaling_factor: of mean 0, std 1.

    Diffusers' convention; `save_pretrained` keeps it. Returns the same autoencoder.
    """
    autoencoder.register_to_config(scaling_factor=1 / std, shift_factor=mean)
    return autoencoder
