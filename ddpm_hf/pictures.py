"""Pictures from arrays of images."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


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
    images = _enlarged(images)
    n, channels, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    sheet = np.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, y : y + height, x : x + width] = image
    return to_pil(sheet)


def class_grid(images: np.ndarray, scales: Sequence[float], names: Sequence[str], gap: int = 2) -> Image.Image:
    """uint8 (rows, scales, per_scale, C, H, W): a row a class with its name, its images grouped by guidance scale."""
    images = _enlarged(images)
    rows, _, per_scale, channels, height, width = images.shape
    font = ImageFont.load_default(size=14)
    labels = [_shortened(name, font, max_width=140) for name in names]
    headers = [f"guidance {scale:g}" for scale in scales]
    line = sum(font.getmetrics())
    row_height = max(height, line) + gap
    group_width = per_scale * (width + gap) - gap
    slot = max(group_width, *(math.ceil(font.getlength(header)) for header in headers))  # a header may be the wider
    margin, between = 8, max(12, width // 4)
    left = margin + math.ceil(max(font.getlength(label) for label in labels)) + margin
    top = margin + line + margin // 2
    size = (left + len(scales) * (slot + between) - between + margin, top + rows * row_height - gap + margin)
    sheet = Image.new("L" if channels == 1 else "RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for s, header in enumerate(headers):
        x = left + s * (slot + between)
        draw.text((x + slot / 2, margin + line / 2), header, "black", font, anchor="mm")
        for row in range(rows):
            for i in range(per_scale):
                corner = x + (slot - group_width) // 2 + i * (width + gap), top + row * row_height
                sheet.paste(to_pil(images[row, s, i]), corner)
    for row, label in enumerate(labels):
        draw.text((left - margin, top + row * row_height + height / 2), label, "black", font, anchor="rm")
    return sheet


def _enlarged(images: np.ndarray) -> np.ndarray:
    """(..., H, W), small ones by a whole factor."""
    zoom = max(1, 64 // images.shape[-2])
    return images.repeat(zoom, axis=-2).repeat(zoom, axis=-1)


def _shortened(text: str, font: ImageFont.FreeTypeFont, max_width: int) -> str:
    """As much of it as fits, with an ellipsis for the rest."""
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(text + "\u2026") > max_width:
        text = text[:-1]
    return text.rstrip() + "\u2026"
