"""Pictures from arrays of images."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NEAREST_HEADERS = ("sample", "nearest training images")
INK = "#1f2328"  # letters
LABEL = 12  # widest label of a row, in heights of its letters
SHOWN = 64  # pixels: less tall images are enlarged, so that a person can see them


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
    images = enlarged(images)
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
    headers = [f"guidance {scale:g}" for scale in scales]
    return Sheet([list(row) for row in images], names, headers, gap=gap).draw()


def distance_captions(distances: np.ndarray) -> list[list[list[str]]]:
    """(n, k) distances as a `Sheet`'s captions, none below the sample itself; as many decimals in all."""
    largest = float(np.abs(distances).max())
    decimals = max(0, 2 - math.floor(math.log10(largest))) if 0 < largest < math.inf else 2
    return [[[""], [f"{distance:.{decimals}f}" for distance in row]] for row in distances]


class Sheet:
    """A page of images: rows with their labels at the left, each of groups side by side with their headers above.

    rows: of each row its groups, of each group uint8 (n, C, H, W). A group may hold fewer images in one row than in another.
    captions: of each row, of each group, a line below each image
    tall: images less tall are enlarged by a whole factor, pixel for pixel, to at most so many pixels
    text: the height of letters, in pixels
    between: pixels between groups, at least
    size: (width, height) of the page
    """

    def __init__(
        self,
        rows: Sequence[Sequence[np.ndarray]],
        labels: Sequence[str] = (),
        headers: Sequence[str] = (),
        captions: Sequence[Sequence[Sequence[str]]] | None = None,
        *,
        tall: int = SHOWN,
        text: int = 14,
        gap: int = 2,
        between: int | None = None,
    ) -> None:
        self.rows, self.tall = rows, tall
        self.headers, self.captions, self.gap, self.font = headers, captions, gap, font(text)
        self.line, self.margin = sum(self.font.getmetrics()), 4 * text // 7
        shapes = [group.shape for row in rows for group in row]
        zooms = [_zoom(height, tall) for _, _, height, _ in shapes]
        self.channels = max(channels for _, channels, _, _ in shapes)
        below = [text for row in captions or () for group in row for text in group]
        widths = [zoom * width for zoom, (_, _, _, width) in zip(zooms, shapes, strict=True)]
        self.cell = max(*widths, *map(self._width, below), 0)
        self.height = max(zoom * height for zoom, (_, _, height, _) in zip(zooms, shapes, strict=True))
        self.label_font, self.labels = self._labels(labels, text)
        widest = max((math.ceil(self.label_font.getlength(line)) for label in self.labels for line in label), default=0)
        self.left = self.margin + (widest + self.margin if widest else 0)
        self.top = self.margin + (self.line + self.margin // 2 if headers else 0)
        self.row_height = max(self.height, self.line) + gap + (self.line + self.margin if captions else 0)
        counts = [max(len(row[g]) for row in rows) for g in range(len(rows[0]))]
        self.widths = [count * (self.cell + gap) - gap for count in counts]
        self.head_font, above = self._head_font(text)
        self.slots = [max(pair) for pair in zip(self.widths, above, strict=True)]  # a header may be the wider
        between = max(12, self.cell // 4) if between is None else between
        self.starts = [self.left, *(self.left + end for end in accumulate(slot + between for slot in self.slots))]
        width = self.starts.pop() - between + self.margin
        self.size = width, self.top + len(rows) * self.row_height - gap + self.margin

    def _labels(self, labels: Sequence[str], text: int) -> tuple[ImageFont.FreeTypeFont, list[list[str]]]:
        """The largest letters, down to three quarters, in which all labels fit, and their lines."""
        for size in range(text, max(14, 3 * text // 4) - 1, -1):
            letters = font(size)
            most = max(1, self.height // sum(letters.getmetrics()))
            lines = [wrapped(label, letters, LABEL * text, most) for label in labels]
            if not any(line.endswith("\u2026") for label in lines for line in label):
                break
        return letters, lines

    def _head_font(self, text: int) -> tuple[ImageFont.FreeTypeFont, list[int]]:
        """The largest letters, down to three quarters, in which headers fit above their groups, and their widths then."""
        for size in range(text, max(14, 3 * text // 4) - 1, -1):
            letters = font(size)
            widths = [math.ceil(letters.getlength(header)) + size // 4 for header in self.headers]
            if all(width <= group for width, group in zip(widths, self.widths, strict=bool(widths))):
                break
        return letters, widths or [0] * len(self.widths)

    def _width(self, text: str) -> int:
        return math.ceil(self.font.getlength(text))

    def draw(self) -> Image.Image:
        sheet = Image.new("L" if self.channels == 1 else "RGB", self.size, "white")
        draw = ImageDraw.Draw(sheet)
        for header, x, slot in zip(self.headers, self.starts, self.slots, strict=bool(self.headers)):
            draw.text((x + slot / 2, self.margin + self.line / 2), header, INK, self.head_font, anchor="mm")
        for r, row in enumerate(self.rows):
            top = self.top + r * self.row_height
            for g, group in enumerate(row):
                first = self.starts[g] + (self.slots[g] - self.widths[g]) // 2
                for i, image in enumerate(enlarged(group, self.tall)):
                    x = first + i * (self.cell + self.gap)
                    height, width = image.shape[1:]
                    sheet.paste(to_pil(image), (x + (self.cell - width) // 2, top + (self.height - height) // 2))
                    if self.captions:
                        below = x + self.cell / 2, top + max(self.height, self.line) + self.line / 2
                        draw.text(below, self.captions[r][g][i], INK, self.font, anchor="mm")
            for i, text in enumerate(self.labels[r] if self.labels else ()):
                y = top + self.height / 2 + (i - (len(self.labels[r]) - 1) / 2) * sum(self.label_font.getmetrics())
                draw.text((self.left - self.margin, y), text, INK, self.label_font, anchor="rm")
        return sheet


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the letters of mathematics."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def enlarged(images: np.ndarray, tall: int = SHOWN) -> np.ndarray:
    """(..., H, W) by the whole factor that makes them at most `tall` pixels tall; never smaller."""
    zoom = _zoom(images.shape[-2], tall)
    return images.repeat(zoom, axis=-2).repeat(zoom, axis=-1)


def _zoom(height: int, tall: int) -> int:
    return max(1, tall // height)


def wrapped(text: str, font: ImageFont.FreeTypeFont, max_width: int, max_lines: int) -> list[str]:
    """In lines of at most `max_width` pixels, broken between words; an ellipsis stands for what does not fit."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= max_width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], " ".join(lines[max_lines - 1 :])]
    return [_shortened(line, font, max_width) for line in lines]


def _shortened(text: str, font: ImageFont.FreeTypeFont, max_width: int) -> str:
    """As much of it as fits, with an ellipsis for the rest."""
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(text + "\u2026") > max_width:
        text = text[:-1]
    return text.rstrip() + "\u2026"
