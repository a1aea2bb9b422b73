"""Between images and what the denoiser sees."""

import torch


class PixelCodec:
    """The denoiser sees the pixels themselves."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, C, H, W) to float32 in [-1, 1]."""
        return images.float() / 127.5 - 1
