"""Any source → the prepared store of an autoencoder's latents, by any number of processes at once.

They share the work without speaking to one another: a process claims a shard by a lock on a hidden file, which the
system lifts when the process ends, however it ends, and another then takes the shard over.
"""

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ddpm_hf.codec import AutoencoderCodec
from ddpm_hf.config import Data
from ddpm_hf.data.base import Example, Source
from ddpm_hf.data.dataset import TrainingLatents
from ddpm_hf.data.images import UnreadableImage, read_image
from ddpm_hf.data.prepare import (
    alone_in,
    begin,
    check_space,
    complete,
    fingerprint,
    finished,
    make_folder,
    shard_size,
    store_folder,
    warn_of_bad_images,
    writing,
)
from ddpm_hf.data.shards import Span, stop_at_bad_image
from ddpm_hf.data.sources import open_source
from ddpm_hf.data.store import PreparedStore, is_written, shard_name, write_shard
from ddpm_hf.errors import ProcessError, UserError

logger = logging.getLogger(__name__)

_AHEAD = 2  # batches read while one is encoded
_MEASURED = 10_000  # records


def prepare_latents(
    data: Data,
    codec: AutoencoderCodec,
    latent_dtype: str,
    batch_size: int,
    *,
    check: Callable[[Source], None] = lambda source: None,
    progress: bool = True,
) -> PreparedStore:
    """The store of the images' latents; made if it is missing, completed if it was interrupted.

    A record is `codec.moments` of an image, (2c,h,w); with data.flip (4c,h,w), followed by those of its mirror image.
    All processes that call this share the work, and return when all of it is done.

    latent_dtype: float16, bfloat16 or float32
    check: is shown the source before anything is encoded
    progress: show a bar and the latents' scale; for one process of several

    Raises `UserError` for data.crop random, a latent that is not finite, and for all that `prepare` does.
    """
    if data.crop == "random":
        raise UserError(
            "data.crop: random crops cannot be taken from stored latents; set center, or autoencoder.store_latents: false"
        )
    source = open_source(data)
    wanted = fingerprint(data, source) | {
        "autoencoder": codec.identity,
        "latents": {"dtype": latent_dtype, "mirrored": data.flip, "format": "mean and log variance"},
    }
    folder = store_folder(data, wanted)
    store = finished(data, folder, wanted)
    if store is None:
        check(source)
        share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        with ThreadPoolExecutor(data.prepare_workers or max(1, share)) as pool:
            store = _prepare(
                data, source, wanted, folder, _Encoder(data, source, codec, latent_dtype, batch_size, pool), progress
            )
    if progress:
        _tell_scale(store, codec)
    return store


def _prepare(
    data: Data, source: Source, wanted: dict, folder: Path, encoder: "_Encoder", progress: bool
) -> PreparedStore:
    make_folder(data, source, folder)
    shape = encoder.shape()
    record = math.prod(shape) * encoder.dtype.itemsize
    with alone_in(folder, brief=True):
        if store := finished(data, folder, wanted):
            return store
        spans = begin(folder, wanted, len(source), _shard_size(len(source), record))
    with writing(folder):
        try:
            _write_all(folder, spans, encoder, record, progress)
        except UserError as error:
            raise ProcessError(str(error)) from None  # whose shard it was, no other process knows of it
        except torch.OutOfMemoryError:
            raise ProcessError(
                f"out of memory while encoding: lower autoencoder.batch_size, {encoder.batch_size}"
            ) from None
        with alone_in(folder, brief=True):
            if not finished(data, folder, wanted):
                content = {"fingerprint": wanted, "dtype": wanted["latents"]["dtype"], "channels": shape[0]}
                complete(data, source, folder, spans, content, encoder.measure)
    for lock in folder.glob(".shard-*.lock"):  # by every process, as the last to wait makes its file anew
        with suppress(OSError):  # another's was quicker; or Windows, while another looks at it
            lock.unlink()
    return PreparedStore(folder)


def _shard_size(total: int, record: int) -> int:
    """Small enough that several processes have something to share, and that an interruption costs little of slow encoding."""
    return shard_size(total, record, most=min(1024, max(64, total // 64)))


def _write_all(folder: Path, spans: list[Span], encoder: "_Encoder", record: int, progress: bool) -> None:
    """Writes what no other process has claimed, then waits for the others, taking over what they leave unfinished."""
    total, done = spans[-1].stop, _images_written(folder, spans)
    check_space(folder, (total - done) * record)
    title = f"encoding {folder.name}"
    with tqdm(total=total, initial=done, desc=title, unit="img", disable=not progress) as bar:
        for wait in (False, True):
            for span in spans:
                if is_written(folder, span.number):
                    continue
                with _claim(folder, span.number, wait) as claimed:
                    if claimed and not is_written(folder, span.number):
                        write_shard(folder, span.number, encoder.records(span, bar))
                if progress:
                    bar.n = _images_written(folder, spans)  # the other processes' too
                    bar.refresh()


def _images_written(folder: Path, spans: list[Span]) -> int:
    return sum(span.stop - span.start for span in spans if is_written(folder, span.number))


@contextmanager
def _claim(folder: Path, number: int, wait: bool) -> Iterator[bool]:
    """Whether the shard is this process's to write; always, after having waited for whoever had it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f".{shard_name(number)}.lock")
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class _Encoder:
    """Images → records. Batches start with their shard, so that no record depends on who writes it, or when."""

    def __init__(
        self,
        data: Data,
        source: Source,
        codec: AutoencoderCodec,
        latent_dtype: str,
        batch_size: int,
        pool: ThreadPoolExecutor,
    ):
        self.data, self.source, self.codec, self.batch_size, self.pool = data, source, codec, batch_size, pool
        self.dtype: torch.dtype = getattr(torch, latent_dtype)
        self._warned = False

    def shape(self) -> tuple[int, int, int]:
        """A record's, found by encoding a black image."""
        return tuple(
            self._encode(torch.zeros(1, self.data.channels, *self.data.resolution, dtype=torch.uint8)).shape[1:]
        )

    def records(self, span: Span, bar: tqdm) -> Iterator[tuple[int, int | None, np.ndarray]]:
        """(index in the source, label, record (C,h,w)) of a shard's images."""
        for first, examples, reading in self._batches(span):
            good, images = [], []
            for n, future in enumerate(reading):
                try:
                    images.append(future.result())
                    good.append(n)
                except UnreadableImage as error:
                    stop_at_bad_image(self.data, error)
                    if not self._warned:
                        warn_of_bad_images(str(error))
                        self._warned = True
            if good:
                moments = self._encode(torch.from_numpy(np.stack(images)))
                stored = self._finite(moments, [examples[n].name for n in good])
                for n, record in zip(good, stored, strict=True):
                    yield first + n, examples[n].label, record
            bar.update(len(examples))

    def _batches(self, span: Span) -> Iterator[tuple[int, list[Example], list[Future]]]:
        """The shard's batches in their order, the next ones being read meanwhile; each with the index of its first."""
        ahead = deque()
        for first in range(span.start, span.stop, self.batch_size):
            examples = self.source.read(first, min(first + self.batch_size, span.stop))
            ahead.append((first, examples, [self.pool.submit(self._read, example) for example in examples]))
            if len(ahead) > _AHEAD:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()

    def _read(self, example: Example) -> np.ndarray:
        return read_image(example, self.data.resolution, self.data.channels, self.data.crop)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N,C,H,W) to records in float32, on the autoencoder's device."""
        images = images.to(self.codec.vae.device)
        moments = self.codec.moments(images)
        return torch.cat([moments, self.codec.moments(images.flip(-1))], dim=1) if self.data.flip else moments

    def _finite(self, moments: torch.Tensor, names: list[str]) -> np.ndarray:
        """Records as they are stored. Raises `UserError` that names the first image whose record is not finite."""
        stored = moments.to(self.dtype)
        finite = stored.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            bad = finite.index(False)
            dtype = str(self.dtype).removeprefix("torch.")
            why = (
                f"does not fit into {dtype}; set autoencoder.latent_dtype: float32"
                if moments[bad].isfinite().all()
                else "is not finite; use a float32 autoencoder that was trained on such images"
            )
            raise UserError(f"{names[bad]}: its latent {why}")
        stored = stored.cpu().contiguous()
        return (stored.view(torch.int16) if self.dtype == torch.bfloat16 else stored).numpy()

    def measure(self, store: PreparedStore) -> dict:
        """Mean and standard deviation of samples of the posteriors, unscaled, from records evenly spread over the store."""
        latents, c = TrainingLatents(store), self.codec.latent_channels
        indices = np.linspace(0, len(store) - 1, min(len(store), _MEASURED)).astype(np.int64)
        sums, count = torch.zeros(3, dtype=torch.float64), 0
        for part in np.array_split(indices, -(-len(indices) // 64)):
            records = latents.plain(part.tolist())["records"].double()
            mean, log_variance = records[:, :c], records[:, c:]
            sums += torch.stack([mean.sum(), (mean**2).sum(), log_variance.exp().sum()])
            count += mean.numel()
        mean, square, noise = (sums / count).tolist()
        return {"latents": {"mean": mean, "std": math.sqrt(max(square - mean**2, 0) + noise)}}


def _tell_scale(store: PreparedStore, codec: AutoencoderCodec) -> None:
    measured = store.manifest["latents"]
    mean, std = (measured["mean"] - codec.shift) * codec.scale, measured["std"] * codec.scale
    line = f"{len(store):,} latents: mean {mean:.3g}, standard deviation {std:.3g} after scaling"
    if 0.5 <= std <= 2:
        tqdm.write(line)
    else:
        logger.warning(
            "%s, which should be about 1; set scaling_factor in the autoencoder's config.json to %.5g",
            line,
            1 / max(measured["std"], 1e-12),
        )
