"""Where evaluated images come from: a model's draws, a folder, an .npz file, a prepared store."""

import hashlib
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ddpm_hf.config import Data
from ddpm_hf.data.base import scan
from ddpm_hf.data.dataset import TrainingImages
from ddpm_hf.data.folder import image_suffixes
from ddpm_hf.data.images import to_uint8
from ddpm_hf.data.store import PreparedStore
from ddpm_hf.diffusion.samplers import num_steps
from ddpm_hf.errors import UserError
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, draw_batch, labels_of, passes

Progress = Callable[[int], None]

_GRAY = ("1", "L", "LA", "La", "I", "F")  # Pillow's modes; and I;16 in its byte orders
_ORIENTATION = 0x0112  # the EXIF tag; from 5 on the picture lies on its side


class Images(ABC):
    """Images by index, all of one shape.

    called: what a message calls them
    shape: (C, H, W)
    labels: int64 (N,), -1 for none; None where no image has one
    class_names: of the labels; None where there are none
    batch_size: how many `read` is best asked for at once; read_ahead: whether on a thread, as of files
    passes, unit: how often `read` reports an image to its `progress`, and what it then reports
    cache: the folder below which what is computed from them is kept
    """

    called: str
    shape: tuple[int, int, int]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    batch_size: int = 64
    read_ahead: bool = True
    passes: int = 1
    unit: str = "image"
    cache: Path = Path("prepared")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int], progress: Progress = lambda images: None) -> torch.Tensor:
        """The images of these indices, uint8 (n, C, H, W)."""

    @property
    @abstractmethod
    def content(self) -> str:
        """A digest, equal for equal images in equal order."""

    @abstractmethod
    def describe(self) -> dict:
        """What a record says of them, as JSON."""


class DrawnImages(Images):
    """What a pipeline draws: image i from seed `first_seed + i` alone.

    autocast: the precision that the denoiser runs in
    """

    unit, read_ahead = "image step", False

    def __init__(
        self,
        pipe: ImageGenerationPipeline,
        num_images: int,
        sampling: Sampling,
        *,
        first_seed: int = 0,
        batch_size: int = 64,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.called = "the model's images"
        self.pipe, self.sampling, self.batch_size, self.autocast = pipe, sampling, batch_size, autocast
        self.seeds = range(first_seed, first_seed + num_images)
        self.passes = passes(pipe, sampling)
        self.shape = image_shape(pipe)
        labels = labels_of(pipe, self.seeds, sampling)
        self.labels = None if labels is None else np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.seeds)

    def read(self, indices: Sequence[int], progress: Progress = lambda images: None) -> torch.Tensor:
        """On the pipeline's device. Raises `UserError` where they are not finite."""
        with self.autocast():
            return draw_batch(self.pipe, [self.seeds[i] for i in indices], self.sampling, progress)

    @property
    def content(self) -> str:
        raise NotImplementedError("known only once they are drawn")

    def describe(self) -> dict:
        sampling = self.sampling
        return {
            "sampler": sampling.sampler,
            "steps": num_steps(sampling.sampler, sampling.steps, self.pipe.scheduler),
            "network_evaluations": self.passes,
            "eta": sampling.eta,
            "class": sampling.class_label,
            "guidance_scale": sampling.guidance_scale,
            "guidance_interval": sampling.guidance_interval and list(sampling.guidance_interval),
            "first_seed": self.seeds.start,
            "batch_size": self.batch_size,
        }


class StoreImages(Images):
    """Images of a prepared store of pixels, as training sees them, but not flipped, and the middle of each.

    indices: which of them, all if not given
    part: what these are, such as "train", for the record
    """

    def __init__(
        self, store: PreparedStore, data: Data, indices: Sequence[int] | None = None, part: str | None = None
    ) -> None:
        self._images = TrainingImages(store, data)
        self._data, self._part = data, part or data.split
        self.store, self.called = store, f"{data.source} ({self._part})"
        self.indices = np.arange(len(store)) if indices is None else np.asarray(indices, np.int64)
        self.shape = (store.channels, *data.resolution)
        self.labels = store.labels[self.indices] if store.class_names is not None else None
        self.class_names = store.class_names
        self.cache = store.folder.parent

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int], progress: Progress = lambda images: None) -> torch.Tensor:
        images = self._images.plain(self.indices[np.asarray(indices)])["records"]
        progress(len(images))
        return images

    @property
    def content(self) -> str:
        return _digest(self.store.content, self.shape, self.indices)

    def describe(self) -> dict:
        data = self._data
        return {
            "source": data.source,
            "subset": data.subset,
            "split": data.split,
            "part": self._part,
            "classes": data.classes,
            "crop": data.crop,
            "resize": "bicubic, antialiased; the middle of each",
        }


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
        self._content = _digest(self.shape, *(digest for _, _, digest in found))

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
        return _digest(self.shape, self._images.tobytes())

    def describe(self) -> dict:
        return {"source": str(self.file)}


class Chosen(Images):
    """Some of other images: `number` of them at random, always the same, in their order."""

    def __init__(self, images: Images, number: int) -> None:
        self.images = images
        self.indices = np.sort(np.random.default_rng(0).choice(len(images), number, replace=False))
        self.called, self.shape, self.cache = images.called, images.shape, images.cache
        self.labels = None if images.labels is None else images.labels[self.indices]
        self.class_names = images.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int], progress: Progress = lambda images: None) -> torch.Tensor:
        return self.images.read(self.indices[np.asarray(indices)], progress)

    @property
    def content(self) -> str:
        return _digest(self.images.content, self.indices)

    def describe(self) -> dict:
        return {**self.images.describe(), "chosen": f"{len(self)} of {len(self.images)}, at random by seed 0"}


def image_shape(pipe: ImageGenerationPipeline) -> tuple[int, int, int]:
    """(C, H, W) of the images that a pipeline draws; of latents as its autoencoder decodes them."""
    size = pipe.unet.config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    if pipe.vae is None:
        return pipe.unet.config.in_channels, *size
    return tuple(pipe.decode(torch.zeros(1, pipe.unet.config.in_channels, *size), "pt").shape[1:])


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
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").digest()
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


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part if isinstance(part, bytes) else part.tobytes() if isinstance(part, np.ndarray) else str(part).encode()
        )
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
