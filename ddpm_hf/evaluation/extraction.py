"""From images to their statistics, in one pass that all processes share; no image is kept."""

import hashlib
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ddpm_hf.errors import ProcessError, UserError
from ddpm_hf.evaluation.extractors.base import Extractor
from ddpm_hf.evaluation.images import Images
from ddpm_hf.evaluation.statistics import Moments, Statistics

AT_ONCE = 64  # images that an extractor sees; Inception wants about 50 MB for each
_AHEAD = 2  # batches that are read while one is extracted


@dataclass
class Extraction:
    """statistics: of every image, in order
    seen: float32 (N, K), the classifier's probabilities; None without one
    first: uint8 (n, C, H, W), the first images, for who wants to look
    distinct: how many images differ from one another
    reading_seconds, extraction_seconds: of the slowest process; reading is drawing, of a model's images
    """

    statistics: Statistics
    seen: np.ndarray | None
    first: np.ndarray
    distinct: int
    reading_seconds: float
    extraction_seconds: float


@dataclass
class _Share:
    """What one process found of its images; tensors of each batch, on the processor."""

    indices: list[int]
    moments: Moments
    features: list[torch.Tensor] = field(default_factory=list)
    probabilities: list[torch.Tensor] = field(default_factory=list)
    seen: list[torch.Tensor] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    first: dict[int, np.ndarray] = field(default_factory=dict)
    reading_seconds: float = 0.0
    extraction_seconds: float = 0.0


def extract(
    images: Images,
    extractor: Extractor,
    state: PartialState,
    *,
    features: bool = False,
    probabilities: bool = False,
    classifier: Extractor | None = None,
    first: int = 0,
    title: str = "",
    batch_size_key: str = "--batch_size",
) -> Extraction | None:
    """Reads every image once, each process those of every `num_processes`-th index, and passes them through `extractor`.

    features, probabilities: keep the extractor's, whole; else the features' moments alone
    classifier: sees the images too; may be `extractor` itself
    first: how many of the first images to keep
    batch_size_key: the option or setting to lower where memory does not suffice

    Returns what all processes found on the main one, None on the others.
    """
    mine = list(range(len(images)))[state.process_index :: state.num_processes]
    share = _Share(mine, Moments(extractor.dimensions, state.device))
    try:
        with tqdm(
            total=len(mine) * images.passes,
            unit=f" {images.unit}",
            desc=title,
            dynamic_ncols=True,
            disable=not state.is_main_process,
        ) as bar:
            started = time.perf_counter()
            for indices, batch in _read(images, mine, bar, state.device):
                read = time.perf_counter()
                on_device = batch.device.type != "cpu"
                for some in batch.split(AT_ONCE):
                    _take(share, some, extractor, state.device, features, probabilities, classifier)
                if on_device:
                    batch = batch.cpu()  # waits, so that the times are what they say
                share.digests += [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in batch]
                share.first |= {i: batch[n].numpy().copy() for n, i in enumerate(indices) if i < first}
                share.reading_seconds += read - started
                started = time.perf_counter()
                share.extraction_seconds += started - read
            # waits for the device, so that what was copied meanwhile is whole; and other processes take no device's tensor
            share.moments.mean, share.moments.scatter = share.moments.mean.cpu(), share.moments.scatter.cpu()
            share.extraction_seconds += time.perf_counter() - started
    except torch.OutOfMemoryError:
        if not images.read_ahead:  # computed on the device too
            raise ProcessError(
                f"out of memory on {state.device}: lower {batch_size_key}, {images.batch_size}"
            ) from None
        raise ProcessError(
            f"out of memory on {state.device}, where {extractor.name} takes {AT_ONCE} of {images.called} at once: end what"
            " else holds its memory, or choose a smaller extractor or another device"
        ) from None
    except UserError as error:
        raise ProcessError(str(error)) from None  # which the other processes know nothing of
    shares = gather_to_main(share, state)
    return None if shares is None else _joined(shares, images)


def gather_to_main(item: object, state: PartialState) -> list | None:
    """Every process's item on the main one; None on the others."""
    if state.num_processes == 1:
        return [item]
    items = [None] * state.num_processes if state.is_main_process else None
    torch.distributed.gather_object(item, items)
    return items


def from_main(item: object, state: PartialState) -> object:
    """The main process's item, on all."""
    if state.num_processes == 1:
        return item
    return broadcast_object_list([item])[0]


def _take(
    share: _Share,
    images: torch.Tensor,
    extractor: Extractor,
    device: torch.device,
    features: bool,
    probabilities: bool,
    classifier: Extractor | None,
) -> None:
    """Passes uint8 (n, C, H, W) through the networks; on a GPU without waiting for it."""
    images = images.to(device, non_blocking=True)
    found = extractor(images)
    share.moments.add(found.values)
    if features:
        share.features.append(_to_host(found.values))
    if probabilities:
        share.probabilities.append(_to_host(found.probabilities))
    if classifier is not None:
        share.seen.append(_to_host((found if classifier is extractor else classifier(images)).probabilities))


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", torch.float32, non_blocking=True)  # into pinned memory, whole once the device is waited for


def _read(
    images: Images, indices: list[int], bar: tqdm, device: torch.device
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Batches of images; those that are not computed on the device are read while it works."""
    batches = [indices[start : start + images.batch_size] for start in range(0, len(indices), images.batch_size)]
    if not images.read_ahead:
        for batch in batches:
            yield batch, images.read(batch, bar.update)
        return
    pin = device.type == "cuda"
    with ThreadPoolExecutor(1) as reader:

        def read(batch: list[int]) -> torch.Tensor:
            found = images.read(batch)
            return found.pin_memory() if pin else found

        ahead: deque[tuple[list[int], Future]] = deque()
        for batch in batches:
            ahead.append((batch, reader.submit(read, batch)))
            if len(ahead) > _AHEAD:
                yield _next(ahead, bar)
        while ahead:
            yield _next(ahead, bar)


def _next(ahead: deque[tuple[list[int], Future]], bar: tqdm) -> tuple[list[int], torch.Tensor]:
    batch, future = ahead.popleft()
    found = future.result()
    bar.update(len(batch))
    return batch, found


def _joined(shares: list[_Share], images: Images) -> Extraction:
    order = np.argsort(np.concatenate([share.indices for share in shares]), kind="stable")

    def in_order(name: str) -> np.ndarray | None:
        parts = [part for share in shares for part in getattr(share, name)]
        return torch.cat(parts).numpy()[order] if parts else None

    moments = shares[0].moments
    for share in shares[1:]:
        moments.merge(share.moments)
    first = {i: image for share in shares for i, image in share.first.items()}
    return Extraction(
        Statistics(moments, in_order("features"), in_order("probabilities"), images.labels),
        in_order("seen"),
        np.stack([first[i] for i in sorted(first)]) if first else np.empty((0, *images.shape), np.uint8),
        len({digest for share in shares for digest in share.digests}),
        max(share.reading_seconds for share in shares),
        max(share.extraction_seconds for share in shares),
    )
