"""The prepared store as batches for training."""

from collections.abc import Sequence

import numpy as np
import torch

from ddpm_hf.config import Data
from ddpm_hf.data.base import Source
from ddpm_hf.data.images import center_crop
from ddpm_hf.data.store import PreparedStore
from ddpm_hf.errors import UserError

Batch = dict[str, torch.Tensor]


def as_it_is(batch: Batch) -> Batch:
    """The DataLoader's `collate_fn`: `TrainingImages` gives whole batches already."""
    return batch


class TrainingImages(torch.utils.data.Dataset):
    """Images with the recipe's flip and crop. For a DataLoader with a `batch_sampler` and `collate_fn=as_it_is`.

    A sample is (index, draw): all that is random about it follows from its draw, a number of 64 bits.
    A batch is `records`, uint8 (N,C,H,W), and `labels`, int64 (N,), -1 where there is none.
    """

    def __init__(self, store: PreparedStore, data: Data):
        self.store, self.resolution, self.flip, self.crop = store, data.resolution, data.flip, data.crop

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> Batch:
        if self.crop == "random":
            images = self._stack([self._random_crop(self.store.read(index), draw) for index, draw in samples])
        else:
            images = self._stack([self.store.read(index) for index, _ in samples])
        if self.flip:
            flipped = np.array([is_flipped(draw) for _, draw in samples])
            images[flipped] = images[flipped][..., ::-1]  # all at once: ten times faster than one by one
        return self._batch(images, [index for index, _ in samples])

    def plain(self, indices: Sequence[int]) -> Batch:
        """Images without anything random: not flipped, and the middle of each."""
        return self._batch(
            self._stack([center_crop(self.store.read(index), self.resolution) for index in indices]), indices
        )

    def _random_crop(self, pixels: np.ndarray, draw: int) -> np.ndarray:
        height, width = self.resolution
        top, left = crop_offset(draw, pixels.shape[1] - height, pixels.shape[2] - width)
        return pixels[:, top : top + height, left : left + width]

    def _stack(self, records: list[np.ndarray]) -> np.ndarray:
        images = np.empty((len(records), self.store.channels, *self.resolution), np.uint8)
        for n, pixels in enumerate(records):
            images[n] = pixels
        return images

    def _batch(self, images: np.ndarray, indices: Sequence[int]) -> Batch:
        return {"records": torch.from_numpy(images), "labels": _labels(self.store, indices)}


class TrainingLatents(torch.utils.data.Dataset):
    """Latents, flipped as `TrainingImages` flips: a draw that flips takes the latent of the mirrored image.

    A batch is `records`, each image's mean and log variance, (N,2c,h,w) of the dtype stored, and `labels`, int64 (N,),
    -1 where there is none. Of an autoencoder that knows no posterior the records are (N,c,h,w).
    """

    def __init__(self, store: PreparedStore):
        self.store, self.mirrored = store, store.fingerprint["latents"]["mirrored"]
        channels, *size = store.shape
        self._shape = (channels // 2 if self.mirrored else channels, *size)

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> Batch:
        return self._batch([(index, self.mirrored and is_flipped(draw)) for index, draw in samples])

    def plain(self, indices: Sequence[int]) -> Batch:
        """Latents of the images as they are, not mirrored."""
        return self._batch([(index, False) for index in indices])

    def _batch(self, halves: list[tuple[int, bool]]) -> Batch:
        channels = self._shape[0]
        records = np.empty((len(halves), *self._shape), self.store.dtype)
        for n, (index, flipped) in enumerate(halves):
            first = channels if flipped else 0
            records[n] = self.store.read(index)[first : first + channels]
        if self.store.manifest["dtype"] == "bfloat16":
            tensor = torch.from_numpy(records.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(records)
        return {"records": tensor, "labels": _labels(self.store, [index for index, _ in halves])}


def training_set(store: PreparedStore, data: Data) -> TrainingImages | TrainingLatents:
    return TrainingLatents(store) if "latents" in store.fingerprint else TrainingImages(store, data)


def _labels(store: PreparedStore, indices: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(store.labels[np.asarray(indices, np.int64)])


def check_labels(store: PreparedStore | Source, num_classes: int | None) -> None:
    """Raises `UserError` where the images' labels are not those that a conditional model is made for."""
    if num_classes is None:
        return
    if store.class_names is None or (store.labels < 0).any():
        missing = "none" if store.class_names is None else f"{(store.labels < 0).sum()} without"
        raise UserError(
            f"condition.num_classes: {num_classes} classes need a label for every image, and data.source has {missing};"
            " leave condition out for an unconditional model, or name data.label_column"
        )
    if len(store.class_names) != num_classes:
        raise UserError(
            f"condition.num_classes: {num_classes} is not the number of classes in data.source, {len(store.class_names)}:"
            f" {', '.join(map(str, store.class_names[:10]))}{', ...' if len(store.class_names) > 10 else ''}"
        )


def check_validation_labels(store: PreparedStore | Source, validation: PreparedStore | Source) -> None:
    """Raises `UserError` where a label of a conditional model's validation split is missing, or means another class."""
    if store.class_names != validation.class_names:
        raise UserError(
            f"data.validation_split: its classes are {validation.class_names}, those trained on {store.class_names};"
            " use a split with the same, or data.held_out"
        )
    if (validation.labels < 0).any():
        raise UserError(
            f"data.validation_split: {(validation.labels < 0).sum()} of its images have no label; use another split, or"
            " data.held_out"
        )


def is_flipped(draw: int) -> bool:
    return bool(int(draw) >> 63 & 1)


def crop_offset(draw: int, spare_height: int, spare_width: int) -> tuple[int, int]:
    """Top and left of a crop, each uniform from 0 to what is to spare: from bits 32 to 62 and 0 to 31 of the draw."""
    draw = int(draw)
    return (draw >> 32 & 0x7FFFFFFF) * (spare_height + 1) >> 31, (draw & 0xFFFFFFFF) * (spare_width + 1) >> 32
