"""What a visitor takes home: pictures, a grid, and a zip of them with their settings."""

import errno
import io
import json
import math
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_hf import __version__
from ddpm_hf.app.models import Model
from ddpm_hf.app.request import EACH, Request, Settings, to_query
from ddpm_hf.errors import UserError
from ddpm_hf.pictures import Sheet, columns_for, enlarged, grid, to_pil
from ddpm_hf.sampling import labels_of

TALL = 256  # pixels: less tall pictures are shown and saved enlarged, pixel for pixel, by a whole factor
KEPT = 3600  # seconds that files stay
LARGEST = 2 * 2**30  # bytes of all files; beyond, the oldest go
CARDS = "cards"
SAMPLER_NAMES = {
    "dpmsolver++": "DPM-Solver++",
    "unipc": "UniPC",
    "ddim": "DDIM",
    "heun": "Heun",
    "ddpm": "DDPM",
}
GAP = 4  # pixels between the states of a strip


@dataclass(frozen=True)
class Side:
    """What one of a request's settings gave: `images` uint8 (N, C, H, W), one a seed."""

    model: Model
    settings: Settings
    seeds: range
    images: np.ndarray

    def labels(self) -> list[int] | list[None]:
        return labels_of(self.model.pipe, self.seeds, self.settings.sampling(self.model)) or [None] * len(self.seeds)

    def captions(self) -> list[str]:
        return [
            f"seed {seed}"
            if label in (None, self.model.num_classes)
            else f"{self.model.class_name(label)} · seed {seed}"
            for seed, label in zip(self.seeds, self.labels(), strict=True)
        ]


class Shelf:
    """A folder for the files of many visitors, each drawing's in one of its own whose name nobody can guess."""

    def __init__(self, folder: Path, largest: int = LARGEST) -> None:
        self.folder, self.largest = Path(folder), largest
        self.cards = self.folder / CARDS  # what stays

    def place(self) -> Path:
        """A new folder."""
        self._make_room()
        place = self.folder / secrets.token_urlsafe(16)
        place.mkdir(parents=True)
        return place

    def _make_room(self) -> None:
        """Removes what is old, and the oldest where all is too much. Others may do the same at the same time."""
        places = []
        with suppress(OSError):
            for place in self.folder.iterdir():
                with suppress(OSError):
                    if place.is_dir() and place != self.cards:
                        sizes = [file.stat().st_size for file in place.rglob("*") if file.is_file()]
                        places.append((place.stat().st_mtime, sum(sizes), place))
        total = sum(size for _, size, _ in places)
        for since, size, place in sorted(places):
            if total > self.largest or time.time() - since > KEPT:
                shutil.rmtree(place, ignore_errors=True)
                total -= size


@contextmanager
def writing() -> Iterator[None]:
    """A full disk is told in a line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError("the server's disk is full; try again later") from None
        raise


def save_pictures(side: Side, place: Path, prefix: str = "") -> list[tuple[str, str]]:
    """(file, caption) of each picture, in the order of the seeds."""
    files = [place / f"{prefix}{_name(seed)}" for seed in side.seeds]
    for file, image in zip(files, enlarged(side.images, TALL), strict=True):
        to_pil(image).save(file, compress_level=1)
    return list(zip(map(str, files), side.captions(), strict=True))


def save_all(request: Request, sides: list[Side], place: Path) -> tuple[str, str]:
    """Everything on one page, a PNG file, and everything in a zip."""
    page = _page(sides)
    page.save(place / "grid.png")
    _write_archive(place / "pictures.zip", request, sides, page)
    return str(place / "grid.png"), str(place / "pictures.zip")


def save_strip(states: np.ndarray, place: Path) -> str:
    """The states of one picture, uint8 (columns, C, H, W), four to a row, which a phone's window takes."""
    pictures = [to_pil(image) for image in enlarged(states, TALL // 2)]
    width, height = pictures[0].size
    sheet = Image.new("RGBA", (4 * (width + GAP) - GAP, math.ceil(len(pictures) / 4) * (height + GAP) - GAP))
    for i, picture in enumerate(pictures):  # between them nothing, in the light and in the dark
        sheet.paste(picture, (i % 4 * (width + GAP), i // 4 * (height + GAP)))
    sheet.save(place / "strip.png")
    return str(place / "strip.png")


def columns_of(side: Side) -> int | None:
    """As many columns as classes where each has its turn; None for a square."""
    return columns_for(side.model.num_classes if side.settings.class_label == EACH else None, len(side.images))


def described(settings: Settings) -> str:
    """What makes one drawing another, in a line."""
    words = [SAMPLER_NAMES.get(settings.sampler, settings.sampler), f"{settings.steps} steps"]
    if settings.class_label is not None:
        words.append("no guidance" if settings.guidance == 1 else f"guidance {settings.guidance:g}")
        if (settings.low, settings.high) != (0, math.inf) and settings.guidance != 1:
            words.append(f"noise {settings.low:g} to {'∞' if math.isinf(settings.high) else f'{settings.high:g}'}")
    return ", ".join(words)


def _page(sides: list[Side]) -> Image.Image:
    if len(sides) == 1:
        return grid(sides[0].images, columns_of(sides[0]))
    count = len(sides[0].images)
    columns = min(count, columns_of(sides[0]) or math.ceil(math.sqrt(count)))
    rows = [[side.images[start : start + columns] for side in sides] for start in range(0, count, columns)]
    headers = [f"{letter}: {described(side.settings)}" for letter, side in zip("AB", sides, strict=True)]
    return Sheet(rows, headers=headers).draw()


def _write_archive(file: Path, request: Request, sides: list[Side], page: Image.Image) -> None:
    about = {
        "seeds": list(request.seeds),
        "settings": [_as_json(side) for side in sides],
        "link": to_query(request),
        "ddpm_hf": __version__,
    }
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("settings.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        archive.writestr("grid.png", _png(page))
        for side, letter in zip(sides, "ab", strict=False):
            folder = f"{letter}/" if len(sides) == 2 else ""
            large = enlarged(side.images, TALL)
            for seed, image, larger in zip(side.seeds, side.images, large, strict=True):
                archive.writestr(f"{folder}true_size/{_name(seed)}", _png(to_pil(image)))
                if larger.shape != image.shape:
                    archive.writestr(f"{folder}enlarged/{_name(seed)}", _png(to_pil(larger)))


def _as_json(side: Side) -> dict:
    settings = side.settings
    about = {"model": settings.model, "sampler": settings.sampler, "steps": settings.steps}
    if settings.class_label is not None:
        about["guidance_scale"] = settings.guidance
        about["guidance_interval"] = [settings.low, None if math.isinf(settings.high) else settings.high]
        about["classes"] = [side.model.class_name(label) for label in side.labels()]
    return about


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=1)
    return content.getvalue()
