"""Writes shards, in this process or in several."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_hf.config import Data
from ddpm_hf.data.base import Source
from ddpm_hf.data.store import write_shard
from ddpm_hf.errors import UserError

_CHUNK = 256  # images read from the source at once


class Span(NamedTuple):
    """One shard's number and its part of the source."""

    number: int
    start: int
    stop: int


def spans_of(total: int, shard_size: int) -> list[Span]:
    return [Span(n, start, min(start + shard_size, total)) for n, start in enumerate(range(0, total, shard_size))]


def stop_at_bad_image(data: Data, error: Exception) -> None:
    """Raises `UserError` for an `UnreadableImage`, unless the recipe skips them."""
    if data.on_bad_image == "stop":
        raise UserError(f"{error}; repair or remove it, or set data.on_bad_image: skip") from error


class Written(NamedTuple):
    images: int  # that the source gave
    bad: int
    first_bad: str  # its name and what is wrong with it


def write_shards(data: Data, source: Source, folder: Path, todo: list[Span], workers: int) -> Iterator[Written]:
    """Writes shards in any order, a result for each. Raises `UserError` at an unreadable image, unless they are skipped."""
    write = _Writer(data, source, folder)
    if workers <= 1 or len(todo) <= 1:  # starting processes takes seconds
        yield from map(write, todo)
        return
    # an executor, unlike a Pool, notices when a worker is killed, by a full memory for example
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), spawn, _start_worker, (write,)) as pool:
        futures = [pool.submit(_write, span) for span in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Writer:
    def __init__(self, data: Data, source: Source, folder: Path):
        self.data, self.source, self.folder = data, source, folder

    def __call__(self, span: Span) -> Written:
        bad: list[str] = []
        write_shard(self.folder, span.number, self._records(span, bad))
        return Written(span.stop - span.start, len(bad), bad[0] if bad else "")

    def _records(self, span: Span, bad: list[str]) -> Iterator[tuple[int, int | None, np.ndarray]]:
        from ddpm_hf.data.images import UnreadableImage, read_image

        data = self.data
        for first in range(span.start, span.stop, _CHUNK):
            for i, example in enumerate(self.source.read(first, min(first + _CHUNK, span.stop)), first):
                try:
                    pixels = read_image(example, data.resolution, data.channels, data.crop)
                except UnreadableImage as error:
                    stop_at_bad_image(data, error)
                    bad.append(str(error))
                else:
                    yield i, example.label, pixels


# ---- in a worker process -----------------------------------------------------------------------------------

_writer: _Writer


def _start_worker(write: _Writer) -> None:
    global _writer
    _writer = write
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # returns too when the parent was killed, and its workers would wait for ever
    os._exit(1)


def _write(span: Span) -> Written:
    return _writer(span)
