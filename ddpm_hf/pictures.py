"""Pictures from arrays of images."""

import math

import numpy as np
from PIL import Image


def to_pil(image: np.ndarray) -> Image.Image:
    """uint8 (C, H, W), one or three channels, to a picture."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def columns_for(num_classes: int | None, images: int) -> int | None:
    """A column a class, where images take their classes in turn and a row of them is no wider than a page."""
    return num_classes if num_classes is not None and num_classes <= min(20, images) else None


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> Image.Image:
    """uint8 (N, C, H, W) side by side, in rows of `columns` (a square if not given), on white.

    Small images are enlarged by a whole factor, pixel for pixel, so that a person can see them.
    """
    zoom = max(1, 64 // max(images.shape[2:]))
    images = images.repeat(zoom, axis=2).repeat(zoom, axis=3)
    n, channels, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    sheet = np.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, y : y + height, x : x + width] = image
    return to_pil(sheet)
