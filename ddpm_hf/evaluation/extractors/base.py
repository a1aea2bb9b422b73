"""What every extractor is, and what several need."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate

from ddpm_hf.errors import UserError


@dataclass(frozen=True)
class Features:
    """values: float32 (N, D)
    probabilities: float32 (N, K), rows sum to 1; None where the extractor knows no classes
    """

    values: torch.Tensor
    probabilities: torch.Tensor | None


class Extractor(ABC):
    """Images → features, always in float32.

    name: stands in the names of metrics
    identity: JSON; equal for extractors that give equal features: name, weights, sha256 of these, resize, dimensions
    dimensions: D
    channels: what the network takes; gray images are repeated where it takes three
    device: where it works, and its features are
    at_once: images that pass through it together on a processor, where many of 224x224 and more take three times as long
        for each: the system gives such large tensors anew each time
    """

    name: str
    identity: dict
    dimensions: int
    has_probabilities: bool
    channels: int = 3
    device: torch.device
    at_once: int = 4

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Features:
        """Of images uint8 (N, 1 or 3, H, W), on any device."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images should be uint8 (N, 1 or 3, H, W), not {images.dtype} {tuple(images.shape)}")
        if images.shape[1] > self.channels:
            raise UserError(f"{self.name} takes gray images, with one channel, and these have {images.shape[1]}")
        on_processor = self.device.type == "cpu"
        # features in half precision are other features
        with _whole_float32(), torch.autocast(self.device.type, enabled=False):
            found = [self.extract(some) for some in images.split(self.at_once if on_processor else len(images))]
        values = torch.cat([some.values for some in found])
        return Features(values, torch.cat([some.probabilities for some in found]) if self.has_probabilities else None)

    @abstractmethod
    def extract(self, images: torch.Tensor) -> Features:
        """Of images uint8 (N, 1 or `channels`, H, W), on any device."""

    def to_input(self, images: torch.Tensor) -> torch.Tensor:
        """The images on the network's device, float32 in [0, 255], with its channels."""
        return images.to(self.device).float().expand(-1, self.channels, -1, -1)


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Without TF32, which keeps ten bits of a factor on NVIDIA's GPUs, and which training may have turned on."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Float (N, C, h, w) in [0, 255] to (N, C, H, W) in [0, 255]: bicubic with antialias, Pillow's own, in float."""
    if images.shape[-2:] == size:
        return images
    return interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 255)
