"""A picture of what the model will see."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_hf.data.dataset import TrainingImages

_GAP = 2  # pixels between images
_LEGIBLE = 96  # pixels up to which small images are enlarged


def preview(dataset: TrainingImages, path: str | Path, num: int = 64) -> None:
    """Writes a grid of `num` images, drawn from all, flipped and cropped as in training."""
    random = np.random.default_rng(0)
    indices = random.choice(len(dataset), min(num, len(dataset)), replace=False)
    draws = random.integers(0, 2**64, len(indices), np.uint64)
    images = dataset.__getitems__(list(zip(indices.tolist(), draws.tolist(), strict=True)))["images"].numpy()

    zoom = max(1, _LEGIBLE // max(images.shape[2:]))
    images = images.repeat(zoom, axis=2).repeat(zoom, axis=3).transpose(0, 2, 3, 1)
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid[:, :, 0] if channels == 1 else grid).save(path)
