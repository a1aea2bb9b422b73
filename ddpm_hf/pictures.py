"""Pictures from arrays of images."""

import math

import numpy as np
from PIL import Image


def to_pil(image: np.ndarray) -> Image.Image:
    """uint8 (C, H, W), one or three channels, to a picture."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> Image.Image:
    """uint8 (N, C, H, W) side by side, in rows of `columns` (a square if not given), on white.

    Small images are enlarged by a whole factor, pixel for pixel, so that a person can see them.
    """
    n, channels, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    sheet = np.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=np.uint8)
    scale = max(1, 512 // max(sheet.shape[1:]))
    sheet = np.full(
        (channels, rows * (height * scale + gap) + gap, columns * (width * scale + gap) + gap), 255, dtype=np.uint8
    )
    for i, image in enumerate(images.repeat(scale, axis=2).repeat(scale, axis=3)):
        y = gap + i // columns * (height * scale + gap)
        x = gap + i % columns * (width * scale + gap)
        sheet[:, y : y + height * scale, x : x + width * scale] = image
    return to_pil(sheet)
