"""Between images and what the denoiser sees: pixels, or the latents of an autoencoder.

Both codecs have the same face: `encode` takes a batch of the prepared store's records and gives x_0, float32, of which
`decode` makes images, uint8 (N, C, H, W), as the pipeline does;
`vae` is the pipeline's autoencoder, None for pixels; `identity` tells one codec from another, None for pixels.
"""

import hashlib
from functools import cached_property

import torch
from diffusers import ModelMixin


class PixelCodec:
    """The denoiser sees the pixels themselves."""

    vae = None
    identity = None

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, C, H, W) to float32 in [-1, 1]."""
        return images.float() / 127.5 - 1

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return to_uint8(x0)


class AutoencoderCodec:
    """The denoiser sees latents, (z - shift) * scale, where scale and shift are the autoencoder's own config.

    `vae`: any of Diffusers' image autoencoders, float32 and frozen. `gray_as_rgb`: images have one channel, it has three.
    `batch_size`: images encoded or decoded at once.
    """

    def __init__(self, vae: ModelMixin, gray_as_rgb: bool = False, batch_size: int = 16) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.gray_as_rgb, self.batch_size = gray_as_rgb, batch_size
        self.scale = getattr(vae.config, "scaling_factor", None) or 1.0
        self.shift = getattr(vae.config, "shift_factor", None) or 0.0
        self.latent_channels = vae.config.get("vq_embed_dim") or vae.config.latent_channels

    @torch.no_grad()
    def moments(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, C, H, W) to the posterior's mean and log variance, float32 (N, 2c, h, w), neither scaled nor shifted.

        (N, c, h, w), the latents themselves, of an autoencoder that knows no posterior.
        """
        # contiguous, since noise like it would be drawn in the order of memory
        return torch.cat([self._moments(some) for some in images.split(self.batch_size)]).contiguous()

    def _moments(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 127.5 - 1
        encoded = self.vae.encode(x.expand(-1, 3, -1, -1) if self.gray_as_rgb else x)
        if hasattr(encoded, "latent_dist"):
            return torch.cat([encoded.latent_dist.mean, encoded.latent_dist.logvar], dim=1).float()
        return (encoded.latents if hasattr(encoded, "latents") else encoded.latent).float()

    def encode(self, records: torch.Tensor) -> torch.Tensor:
        """uint8 images, or the moments that a store keeps, to scaled latents, float32 (N, c, h, w).

        Each is a fresh sample of its image's posterior, from torch's default generator.
        """
        moments = records.float() if records.is_floating_point() else self.moments(records)
        mean, log_variance = moments[:, : self.latent_channels], moments[:, self.latent_channels :]
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean) if log_variance.shape[1] else mean
        return (z - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        z = x0 / self.scale + self.shift
        images = torch.cat([self.vae.decode(some).sample.float() for some in z.split(self.batch_size)])
        return to_uint8(images.mean(dim=1, keepdim=True) if self.gray_as_rgb else images)

    @cached_property
    def identity(self) -> dict:
        """What its latents depend on: equal for equal autoencoders, wherever they came from."""
        return {
            "class": type(self.vae).__name__,
            "weights": weights_digest(self.vae),
            "scaling_factor": self.scale,
            "shift_factor": self.shift,
            "tiling": bool(getattr(self.vae, "use_tiling", False)),
        }


def weights_digest(model: torch.nn.Module) -> str:
    """Equal for equal weights, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float (N, C, H, W) in [-1, 1], or beyond it, to uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
