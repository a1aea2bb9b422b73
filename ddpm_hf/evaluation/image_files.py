"""Images that are there already: files in a folder, or an .npz file of `ddpm-hf sample`."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ddpm_hf.data.base import scan
from ddpm_hf.data.folder import image_suffixes
from ddpm_hf.data.images import to_uint8
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.images import Images, Progress, content_digest
from ddpm_hf.files import sha256_of

_GRAY = ("1", "L", "LA", "La", "I", "F")  # Pillow's modes; and I;16 in its byte orders
_ORIENTATION = 0x0112  # the EXIF tag; from 5 on the picture lies on its side


class FolderImages(Images):
    """The image files in and below a folder, sorted by name; hidden ones are left out.

    Gray files are one channel; where some are in color, all become RGB. Raises `UserError` where there are none, where one
    cannot be read, or where their sizes differ: every file is looked at here, before anything expensive.
    """

    def __init__(self, folder: Path, called: str, progress: bool = True) -> None:
        self.folder, self.called = folder, called
        self.files = [folder / file.name for file in _scan(folder, called)]
        if not self.files:
            raise UserError(f"{called}: holds no image files such as .png")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            title = f"looking at {folder}"
            looks = pool.map(_look, self.files)
            found = list(tqdm(looks, title, len(self.files), unit="image", leave=False, disable=not progress))
        for file, (size, _, _) in zip(self.files, found, strict=True):
            if size != found[0][0]:
                raise UserError(
                    f"{called}: its images are of different sizes, {_by(found[0][0])} ({self.files[0].name}) and"
                    f" {_by(size)} ({file.name}); all should have the same"
                )
        self.shape = (1 if all(gray for _, gray, _ in found) else 3, *found[0][0])
        self._content = content_digest(self.shape, *(digest for _, _, digest in found))

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Sequence[int], progress: Progress = lambda images: None) -> torch.Tensor:
        images = torch.empty(len(indices), *self.shape, dtype=torch.uint8)

        def decode(place: int, i: int) -> None:
            images[place] = torch.from_numpy(_pixels(self.files[i], self.shape[0]))

        list(self._pool.map(decode, range(len(indices)), indices))
        progress(len(images))
        return images

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    @property
    def content(self) -> str:
        return self._content

    def describe(self) -> dict:
        return {"source": str(self.folder)}


class ArchiveImages(Images):
    """An .npz file as `ddpm-hf sample --out` writes it: `images`, uint8 (N, H, W, C), and perhaps `labels`."""

    def __init__(self, file: Path, called: str) -> None:
        self.file, self.called = file, called
        try:
            with np.load(file) as archive:
                images = archive["images"]
                labels = archive.get("labels")
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{called}: cannot be read as an .npz file with images: {error}") from None
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
            raise UserError(
                f"{called}: its images are {images.dtype} {images.shape}; they should be uint8 (N, H, W, C) with 1 or 3 channels"
            )
        if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
            raise UserError(
                f"{called}: its labels are {labels.dtype} {labels.shape}; they should be whole numbers ({len(images)},), one"
                " an image"
            )
        self._images = images.transpose(0, 3, 1, 2)
        self.shape = self._images.shape[1:]
        self.labels = None if labels is None else labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int], progress: Progress = lambda images: None) -> torch.Tensor:
        progress(len(indices))
        return torch.from_numpy(np.ascontiguousarray(self._images[np.asarray(indices)]))

    @cached_property
    def content(self) -> str:
        return content_digest(self.shape, self._images.tobytes())

    def describe(self) -> dict:
        return {"source": str(self.file)}


def holds_images(folder: Path) -> bool:
    """Whether there is an image file in or below a folder."""
    return bool(_scan(folder, str(folder)))


def _scan(folder: Path, called: str) -> list:
    try:
        return scan(folder, image_suffixes())
    except UserError as error:
        raise UserError(str(error).replace("data.source", called, 1)) from None


def _look(file: Path) -> tuple[tuple[int, int], bool, bytes]:
    """Height and width, whether it is gray, and a digest."""
    try:
        digest = bytes.fromhex(sha256_of(file))
        with Image.open(file) as image:
            size = (image.width, image.height) if image.getexif().get(_ORIENTATION, 1) >= 5 else image.size[::-1]
            return size, image.mode in _GRAY or image.mode.startswith("I;"), digest
    except Exception as error:
        raise _unreadable(file, error) from None


def _pixels(file: Path, channels: int) -> np.ndarray:
    """uint8 (C, H, W)."""
    try:
        pixels = np.array(to_uint8(str(file), channels))
    except Exception as error:
        raise _unreadable(file, error) from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _unreadable(file: Path, error: Exception) -> UserError:
    # Pillow's decoders raise nearly everything: OSError, SyntaxError, struct.error, zlib.error, ...
    reason = "is not an image that Pillow can read" if isinstance(error, Image.UnidentifiedImageError) else error
    return UserError(f"{file}: {reason}; mend it or move it away")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
