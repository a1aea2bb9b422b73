"""The prepared store: arrays of one dtype in memory-mapped shards, read by index in O(1).

A folder of `manifest.json`, and for each shard `shard-00000.bin`, the records one after another in C order, with
`shard-00000.npy`, its index. An index is written after its records and the manifest after all shards, each aside and
then renamed, so whatever has its final name is complete.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO
from zlib import crc32

import numpy as np

from ddpm_hf.data.base import NO_LABEL
from ddpm_hf.errors import UserError

FORMAT = 1
INDEX = np.dtype(
    [("source", "<i8"), ("label", "<i8"), ("height", "<i4"), ("width", "<i4"), ("offset", "<i8"), ("crc32", "<u4")]
)
WITHOUT_NUMPY = {"bfloat16": "uint16"}  # a dtype that numpy lacks → what its bits are read as


class PreparedStore:
    """Reads a finished store. Picklable by its path; processes that read it share one copy in the system's page cache.

    manifest: fingerprint, dtype, channels, class_names (None without labels), skipped ({"count", "names"}), shards;
        of latents also latents ({"mean", "std"}, unscaled)
    dtype: numpy's; uint16, the bits, where the manifest's is bfloat16
    labels: int64 (N,), -1 where there is none
    sizes: int32 (N, 2), height and width of each record
    shape: (C,h,w) if it is the same for all, else None
    content: a digest of every record and label in their order; equal for equal images, wherever they came from
    """

    def __init__(self, folder: str | Path, manifest: dict | None = None):
        """manifest: of a store whose shards are all written, but not the manifest yet."""
        self.folder = Path(folder)
        self.manifest = manifest or read_json(self.folder / "manifest.json")
        if self.manifest is None:
            raise UserError(f"{self.folder} is not a prepared store: it has no manifest.json")
        if self.manifest["format"] != FORMAT:
            raise UserError(
                f"{self.folder} has the store format {self.manifest['format']}, this version reads {FORMAT}; prepare it afresh"
            )
        self.fingerprint: dict = self.manifest["fingerprint"]
        self.class_names: list[str] | None = self.manifest["class_names"]
        self.channels: int = self.manifest["channels"]
        self.dtype = np.dtype(WITHOUT_NUMPY.get(self.manifest["dtype"], self.manifest["dtype"]))
        indices = [np.load(self.folder / f"{shard}.npy") for shard in self.manifest["shards"]]
        index = np.concatenate(indices)
        self.labels: np.ndarray = index["label"].copy()
        self.sizes: np.ndarray = np.stack([index["height"], index["width"]], axis=1)
        same = (self.sizes == self.sizes[0]).all()
        self.shape: tuple[int, int, int] | None = (self.channels, *self.sizes[0].tolist()) if same else None
        self.content: str = hashlib.sha256(
            b"".join(index[column].tobytes() for column in ("label", "height", "width", "crc32"))
        ).hexdigest()
        self._offset = index["offset"].copy()
        self._shard = np.repeat(np.arange(len(indices)), [len(i) for i in indices])
        self._check_sizes(indices)

    def __reduce__(self):
        return PreparedStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, i: int) -> int | None:
        label = int(self.labels[i])
        return None if label == NO_LABEL else label

    def read(self, i: int) -> np.ndarray:
        """Record i, a read-only view (C,h,w)."""
        shape = self.shape or (self.channels, *self.sizes[i])
        return np.ndarray(shape, self.dtype, self._maps[self._shard[i]], self._offset[i])

    @property
    def nbytes(self) -> int:
        return int(self.sizes.prod(axis=1, dtype=np.int64).sum()) * self.channels * self.dtype.itemsize

    @cached_property
    def _maps(self) -> list[mmap.mmap]:
        maps = []
        for shard in self.manifest["shards"]:
            with open(self.folder / f"{shard}.bin", "rb") as file:
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if hasattr(mmap, "MADV_WILLNEED") and self.nbytes < _available_memory():  # Windows has no such call
            for shard in maps:
                shard.madvise(mmap.MADV_WILLNEED)
        return maps

    def _check_sizes(self, indices: list[np.ndarray]) -> None:
        """A file cut short, by a broken copy for example, would otherwise kill the process when it is read."""
        for shard, index in zip(self.manifest["shards"], indices, strict=True):
            path, last = self.folder / f"{shard}.bin", index[-1]
            expected = (
                int(last["offset"]) + self.channels * int(last["height"]) * int(last["width"]) * self.dtype.itemsize
            )
            if not path.is_file() or path.stat().st_size != expected:
                raise UserError(f"{path} is missing or incomplete; delete {self.folder}, and it is prepared afresh")


def _available_memory() -> int:
    import psutil

    return psutil.virtual_memory().available


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def is_written(folder: Path, number: int) -> bool:
    return (folder / f"{shard_name(number)}.npy").is_file()


def write_shard(folder: Path, number: int, records: Iterable[tuple[int, int | None, np.ndarray]]) -> int:
    """Writes a shard of (index in the source, label, array (C,h,w)); returns how many there were."""
    for aside in folder.glob(f"{shard_name(number)}.*.tmp"):  # of a process that was killed
        aside.unlink()
    index, offset = [], 0
    with replacing(folder / f"{shard_name(number)}.bin") as file:
        for source_index, label, pixels in records:
            record = np.ascontiguousarray(pixels)
            index.append((source_index, NO_LABEL if label is None else label, *pixels.shape[1:], offset, crc32(record)))
            offset += file.write(record)
    with replacing(folder / f"{shard_name(number)}.npy") as file:
        np.save(file, np.array(index, INDEX))
    return len(index)


def source_indices(folder: Path, number_of_shards: int) -> list[np.ndarray]:
    """For each written shard, where its records stand in the source."""
    return [np.load(folder / f"{shard_name(n)}.npy")["source"] for n in range(number_of_shards)]


def manifest_of(folder: Path, number_of_shards: int, content: dict) -> dict:
    """Of a store whose shards are all written; content: fingerprint, dtype, channels, class_names and skipped."""
    kept = [len(indices) for indices in source_indices(folder, number_of_shards)]
    shards = [shard_name(n) for n, images in enumerate(kept) if images]
    return {"format": FORMAT, "num_images": sum(kept), **content, "shards": shards}


def write_manifest(folder: Path, number_of_shards: int, content: dict) -> None:
    """Completes a store whose shards are all written."""
    write_json(folder / "manifest.json", manifest_of(folder, number_of_shards, content))


def read_json(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(path: Path, content: dict) -> None:
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when it is complete and on disk."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
