"""Pages of images: samples by class, their evolution over training, denoising strips, nearest training images.

On white and for twice as many pixels as they are shown with, as plots are: 1,400 wide, which is 700 on a page. A page that
needs more has letters larger in proportion.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ddpm_hf.errors import UserError
from ddpm_hf.pictures import INK, LABEL, NEAREST_HEADERS, Sheet, distance_captions, font, wrapped

WIDTH, TEXT = 1400, 26  # pixels
_TALLEST, _LEAST = 128, 48  # pixels that images are enlarged to: at most, and at least on a page that is folded
_GAP = 4


def rows_page(
    rows: Mapping[str, np.ndarray], title: str = "", *, columns: Sequence[str] | None = None, width: int = WIDTH
) -> Image.Image:
    """A row of images with its name at the left: a class, an epoch, a variant. Each uint8 (N, C, H, W), N of any length.

    columns: what stands above each column, such as "t = 999" of a denoising strip, or a class of an evolution by epoch
    width: pixels that the page should not exceed

    Rows longer than the page go on below; without a name they form a square. A page that would be much taller than wide
    is folded, and is read down first. Raises `UserError` where there is no image.
    """
    if not any(len(images) for images in rows.values()):
        raise UserError(f"{title or 'a page of images'}: there are no images to draw")
    labels, cells = [], []
    for label, images in rows.items():
        if columns is not None:
            if len(images) > len(columns):
                raise ValueError(f"row {label!r}: {len(images)} images for {len(columns)} columns")
            labels.append(label)
            cells.append([images[i : i + 1] for i in range(len(columns))])
            continue
        longest = _per_row(images, bool(label), width)
        for i in range(0, max(1, len(images)), longest):  # one without images keeps its name
            labels.append("" if i else label)
            cells.append([images[i : i + longest]])
    heads = list(columns or ())

    def sheet(block: slice, tall: int, text: int) -> Sheet:
        return Sheet(
            cells[block], labels[block], heads, tall=tall, text=text, gap=_GAP, between=_GAP if heads else None
        )

    return _page(sheet, len(cells), max(images.shape[-2] for images in rows.values()), title, width)


def neighbours_page(
    samples: np.ndarray,
    neighbours: np.ndarray,
    distances: np.ndarray,
    title: str = "",
    *,
    heads: tuple[str, str] = NEAREST_HEADERS,
    labels: Sequence[str] = (),
    width: int = WIDTH,
) -> Image.Image:
    """Each sample beside the training images nearest to it, with their distances below.

    samples uint8 (N, C, H, W), neighbours uint8 (N, k, C, H, W), distances (N, k), nearest first; labels: of the samples
    """
    if not len(samples):
        raise UserError(f"{title or heads[1]}: there are no samples to draw")
    cells = [[sample[None], nearest] for sample, nearest in zip(samples, neighbours, strict=True)]
    captions = distance_captions(distances)

    def sheet(block: slice, tall: int, text: int) -> Sheet:
        return Sheet(cells[block], labels[block], heads, captions[block], tall=tall, text=text, gap=_GAP)

    return _page(sheet, len(cells), samples.shape[-2], title, width)


def side_by_side(panels: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures, each below its name; plots and pages made half as wide fill a page in twos."""
    named = [_titled(panel, name, TEXT) for name, panel in panels.items()]
    return _beside(named, TEXT)


def _per_row(images: np.ndarray, labelled: bool, width: int) -> int:
    """Images of a row: all, or as many as fit the page when they are shown as small as may be."""
    if not labelled:
        return max(1, math.ceil(math.sqrt(len(images))))
    height, wide = images.shape[-2:]
    least = math.ceil(_LEAST / height) * wide + _GAP
    labels = LABEL * TEXT + 2 * TEXT  # with their margins
    return max(1, min(len(images), (width - labels + _GAP) // least))


def _page(sheet: Callable[[slice, int, int], Sheet], rows: int, height: int, title: str, width: int) -> Image.Image:
    """The largest images for which the page is neither too wide nor too tall, folded where that makes them larger.

    Where there are too many for that, the page is as tall as they need. Where one row is too wide, so is the page.
    """
    between, tallest = 2 * TEXT, 1.5 * width

    def folded(blocks: int, tall: int) -> tuple[list[Sheet], int, int]:
        each = math.ceil(rows / blocks)
        sheets = [sheet(slice(i, i + each), tall, TEXT) for i in range(0, rows, each)]
        wide = sum(one.size[0] for one in sheets) + (len(sheets) - 1) * between
        return sheets, wide, max(one.size[1] for one in sheets)

    best, text = None, TEXT
    for zoom in range(max(1, _TALLEST // height), 0, -1):
        fits = False
        for blocks in range(1, rows + 1):
            sheets, wide, high = folded(blocks, zoom * height)
            if wide > width:
                break
            best, fits = sheets, high <= tallest
            if fits:
                break
        if fits or (best is not None and (zoom - 1) * height < _LEAST):
            break
    if best is None:
        text = round(TEXT * folded(1, height)[1] / width)
        best = [sheet(slice(0, rows), height, text)]
    return _titled(_beside([one.draw() for one in best], between), title, text)


def _beside(pictures: Sequence[Image.Image], between: int) -> Image.Image:
    width = sum(picture.width for picture in pictures) + (len(pictures) - 1) * between
    page = Image.new(_mode(pictures), (width, max(picture.height for picture in pictures)), "white")
    x = 0
    for picture in pictures:
        page.paste(picture, (x, 0))
        x += picture.width + between
    return page


def _titled(picture: Image.Image, title: str, text: int) -> Image.Image:
    """With a title above, in as many lines as the picture's width asks for."""
    if not title:
        return picture
    letters, margin = font(round(1.1 * text), bold=True), 4 * text // 7
    lines = wrapped(title, letters, picture.width - 2 * margin, max_lines=4)
    line = sum(letters.getmetrics())
    page = Image.new(picture.mode, (picture.width, picture.height + margin + len(lines) * line), "white")
    for i, words in enumerate(lines):
        ImageDraw.Draw(page).text((margin, margin + i * line), words, INK, letters)
    page.paste(picture, (0, margin + len(lines) * line))
    return page


def _mode(pictures: Sequence[Image.Image]) -> str:
    return "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
