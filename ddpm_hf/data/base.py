"""What every source of images is, and how files are listed and identified."""

import difflib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_hf.config import Data
from ddpm_hf.errors import UserError

NO_LABEL = -1  # in arrays of labels


class Example(NamedTuple):
    image: str | bytes | np.ndarray  # path; encoded file; or uint8/uint16 (H,W), (H,W,1) or (H,W,3)
    label: int | None
    name: str  # what a message calls it


class Source:
    """Labelled images by index. Picklable: a worker process reads from its own copy.

    fingerprint: JSON-able; identifies the content wherever it lies
    class_names: name of each label; None where there are no labels
    """

    fingerprint: dict
    class_names: list[str] | None

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def labels(self) -> np.ndarray:
        """Every label, int64 (N,), -1 where there is none; no image is opened."""
        raise NotImplementedError

    def take(self, indices: Sequence[int]) -> list[Example]:
        """Examples at any indices, images still encoded."""
        raise NotImplementedError

    def read(self, start: int, stop: int) -> list[Example]:
        """Examples from start up to stop, images still encoded."""
        return self.take(range(len(self))[start:stop])


class File(NamedTuple):
    name: str  # relative to what was scanned, with /
    size: int
    mtime_ns: int


def file_at(path: Path) -> File:
    stat = path.stat()
    return File(path.name, stat.st_size, stat.st_mtime_ns)


def suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def scan(folder: Path, suffixes: Iterable[str]) -> list[File]:
    """Every file of these suffixes in and below a folder, sorted by name; hidden ones are left out."""
    suffixes, found, todo = frozenset(suffixes), [], [("", str(folder))]
    while todo:
        prefix, here = todo.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    todo.append((f"{prefix}{entry.name}/", entry.path))
                elif suffix(entry.name) in suffixes:
                    if not entry.is_file():
                        raise UserError(
                            f"data.source: {entry.path} is neither a file nor a folder; perhaps a broken link"
                        )
                    stat = entry.stat()
                    found.append(File(prefix + entry.name, stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def identify(files: list[File]) -> dict:
    """The part of a fingerprint that says whether these are the same files, wherever they lie."""
    listing = "\n".join(f"{name}\0{size}\0{mtime}" for name, size, mtime in sorted(files))
    return {"files": len(files), "sha256": hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()}


def missing_split(data: Data, splits: Iterable[str]) -> UserError:
    return UserError(f"data.split: {data.source} has no split {data.split}; it has {', '.join(splits)}")


def near_names(path: Path) -> str:
    """`; did you mean …?` from what lies beside a path that does not exist."""
    if not path.parent.is_dir():
        return f"; nor is there a folder {path.parent}"
    near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, os.listdir(path.parent), n=2)]
    return f"; did you mean {' or '.join(near)}?" if near else ""
