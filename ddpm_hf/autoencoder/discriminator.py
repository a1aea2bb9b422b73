"""The critic of an autoencoder's reconstructions: real or not, patch by patch."""

import torch
from torch import nn

from ddpm_hf.errors import UserError

WIDTH = 64  # channels after the first convolution, as in Isola et al. (2017)
GROUPS = 32


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, section 3.2.2) as Esser et al. (2021) train autoencoders with it.

    `channels`: 1 or 3; `size`: the images' height and width, at least 8; `layers`: convolutions of stride 2, fewer
    where the image is too small to leave 2x2 patches. Three of them see patches of 70x70 pixels, two 34x34, one 16x16.
    Raises `UserError` for smaller images.
    """

    def __init__(self, channels: int, size: tuple[int, int], layers: int = 3) -> None:
        super().__init__()
        if min(size) < 8:
            raise UserError(
                f"a discriminator needs images of 8x8 pixels or more, these have {size[0]}x{size[1]}; leave it out"
            )
        # each of them halves the image, rounding down, and the last two convolutions take a pixel each
        self.layers = min(layers, (min(size) // 4).bit_length() - 1)
        blocks = [nn.Conv2d(channels, WIDTH, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = WIDTH
        for layer in range(1, self.layers + 1):
            before, width = width, min(2 * width, 8 * WIDTH)
            blocks += [
                nn.Conv2d(before, width, 4, stride=2 if layer < self.layers else 1, padding=1, bias=False),
                # not BatchNorm: its running statistics are buffers, which neither the EMA nor gradient averaging keeps
                # the same on all processes, and an image's logits would depend on the rest of its micro batch
                nn.GroupNorm(GROUPS, width),
                nn.LeakyReLU(0.2),
            ]
        self.net = nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, padding=1))
        self.apply(_init)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [-1, 1] to logits (N, 1, h, w), large for what looks real."""
        return self.net(images)


def _init(module: nn.Module) -> None:
    """Isola et al. (2017), section 6.2."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
