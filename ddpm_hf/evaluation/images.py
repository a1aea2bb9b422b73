"""Where evaluated images come from: a model's draws, a folder, an .npz file, a prepared store."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch

from ddpm_hf.config import Data
from ddpm_hf.data.dataset import TrainingImages
from ddpm_hf.data.store import PreparedStore
from ddpm_hf.diffusion.samplers import num_steps
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, draw_batch, labels_of, passes

Progress = Callable[[int], None]


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
        return content_digest(self.store.content, self.shape, self.indices)

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
        return content_digest(self.images.content, self.indices)

    def describe(self) -> dict:
        return {**self.images.describe(), "chosen": f"{len(self)} of {len(self.images)}, at random by seed 0"}


def image_shape(pipe: ImageGenerationPipeline) -> tuple[int, int, int]:
    """(C, H, W) of the images that a pipeline draws; of latents as its autoencoder decodes them."""
    size = pipe.unet.config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    if pipe.vae is None:
        return pipe.unet.config.in_channels, *size
    return tuple(pipe.decode(torch.zeros(1, pipe.unet.config.in_channels, *size), "pt").shape[1:])


def content_digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part if isinstance(part, bytes) else part.tobytes() if isinstance(part, np.ndarray) else str(part).encode()
        )
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
