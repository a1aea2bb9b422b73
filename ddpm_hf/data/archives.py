"""Data sets in their own formats: scikit-learn's digits, MNIST's IDX files, CIFAR-10's binary archive."""

import gzip
import math
import re
import tarfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ddpm_hf.config import Data
from ddpm_hf.data.base import Example, Source, file_at, identify, missing_split
from ddpm_hf.errors import UserError

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_CIFAR_BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


class ArraySource(Source):
    """A source that is small enough to lie in memory, loaded when first read."""

    _title: str

    def _load(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Images uint8 (N,H,W) or (N,H,W,3), labels integer (N,), class names."""
        raise NotImplementedError

    @cached_property
    def _content(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        images, labels, names = self._load()
        if len(labels) and labels.max() >= len(names):
            raise UserError(f"data.source: {self._title} has a label {labels.max()}, but only {len(names)} classes")
        return images, labels, names

    def __getstate__(self) -> dict:  # a worker loads its own: cheaper than to send the images
        return {name: value for name, value in vars(self).items() if name != "_content"}

    @property
    def class_names(self) -> list[str]:
        return self._content[2]

    def __len__(self) -> int:
        return len(self._content[0])

    @property
    def labels(self) -> np.ndarray:
        return self._content[1].astype(np.int64)

    def take(self, indices: Sequence[int]) -> list[Example]:
        images, labels, _ = self._content
        return [Example(images[i], int(labels[i]), f"image {i} of {self._title}") for i in indices]


class Digits(ArraySource):
    """scikit-learn's 1,797 handwritten digits, 8x8, from its wheel."""

    def __init__(self, data: Data):
        if data.split != "train":
            raise missing_split(data, ["train"])
        self._title, self.fingerprint = "digits", {"kind": "digits", "split": "train"}

    def _load(self):
        from sklearn.datasets import load_digits

        digits = load_digits()
        return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target, [str(i) for i in range(10)]


class IdxFiles(ArraySource):
    """MNIST's format (http://yann.lecun.com/exdb/mnist), gzipped or not; Fashion-MNIST's too."""

    _FILE = re.compile(r"(train|t10k)-(images|labels)[-.]idx\d-ubyte(\.gz)?")

    @classmethod
    def _files(cls, folder: Path) -> dict[tuple[str, str], Path]:
        """(prefix, images or labels) → file; the unpacked one where both are there."""
        found = {}
        for pattern in ("*ubyte.gz", "*ubyte"):
            for path in folder.glob(pattern):
                if match := cls._FILE.fullmatch(path.name):
                    found[match[1], match[2]] = path
        return found

    @classmethod
    def is_here(cls, folder: Path) -> bool:
        return bool(cls._files(folder))

    def __init__(self, data: Data, folder: Path):
        files, self._title = self._files(folder), str(folder)
        splits = [split for split, prefix in _IDX_PREFIX.items() if (prefix, "images") in files]
        if data.split not in splits:
            raise missing_split(data, splits)
        prefix = _IDX_PREFIX[data.split]
        if (prefix, "labels") not in files:
            raise UserError(f"data.source: {folder} has {prefix}-images-idx3-ubyte but not {prefix}-labels-idx1-ubyte")
        self._images, self._labels = files[prefix, "images"], files[prefix, "labels"]
        self.fingerprint = {
            "kind": "idx",
            "split": data.split,
            **identify([file_at(self._images), file_at(self._labels)]),
        }

    def _load(self):
        images, labels = _read_idx(self._images, dimensions=3), _read_idx(self._labels, dimensions=1)
        if len(images) != len(labels):
            raise UserError(
                f"data.source: {self._images} has {len(images)} images, but {self._labels} has {len(labels)} labels"
            )
        fashion = "fashion" in str(self._images.resolve()).lower()
        names = _FASHION if fashion else [str(i) for i in range(max(10, int(labels.max(initial=0)) + 1))]
        return images, labels, names


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes: two zeros, 8 (the type), the number of dimensions, each dimension as big-endian int32, data."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data.source: {path} cannot be read: {error}; download it again") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        right = bytes([0, 0, 8, dimensions]).hex()
        raise UserError(
            f"data.source: {path} is not an IDX file of bytes: it starts with {content[:4].hex() or 'nothing'}, not {right}"
        )
    shape = tuple(np.frombuffer(content, ">i4", dimensions, offset=4).tolist())
    if len(content) - header != math.prod(shape):
        size = "x".join(map(str, shape))
        raise UserError(
            f"data.source: {path} should hold {size} bytes of data by its header, but holds {len(content) - header}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


class Cifar10(ArraySource):
    """CIFAR-10's binary version (https://www.cs.toronto.edu/~kriz/cifar.html): the .tar.gz, or the folder in it."""

    _FOLDER, _META = "cifar-10-batches-bin", "batches.meta.txt"
    _RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue planes

    @classmethod
    def _inside(cls, folder: Path) -> Path:
        return folder / cls._FOLDER if (folder / cls._FOLDER).is_dir() else folder

    @classmethod
    def is_here(cls, folder: Path) -> bool:
        return any(
            (cls._inside(folder) / name).is_file()
            for name in (cls._META, *_CIFAR_BATCHES["train"], *_CIFAR_BATCHES["test"])
        )

    def __init__(self, data: Data, path: Path):
        if data.split not in _CIFAR_BATCHES:
            raise missing_split(data, _CIFAR_BATCHES)
        self._title = str(path)
        self._path = self._inside(path) if path.is_dir() else path
        self._names = [self._META, *_CIFAR_BATCHES[data.split]]
        files = [self._path]
        if self._path.is_dir():
            files = [self._path / name for name in self._names]
            if missing := [file.name for file in files if not file.is_file()]:
                raise UserError(
                    f"data.source: {self._path} lacks {', '.join(missing)} of CIFAR-10's binary version; unpack it again"
                )
        self.fingerprint = {"kind": "cifar10", "split": data.split, **identify([file_at(file) for file in files])}

    def _read_files(self) -> dict[str, bytes]:
        if self._path.is_dir():
            return {name: (self._path / name).read_bytes() for name in self._names}
        try:
            with tarfile.open(self._path, "r:gz") as tar:
                members = {
                    Path(member.name).name: tar.extractfile(member).read() for member in tar if self._is_ours(member)
                }
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise UserError(f"data.source: {self._path} is cut short or damaged ({error}); download it again") from None
        if missing := [name for name in self._names if name not in members]:
            right = "cifar-10-binary.tar.gz is the one; unpack any other archive and name its folder"
            raise UserError(
                f"data.source: {self._path} lacks {', '.join(missing)} of CIFAR-10's binary version; {right}"
            )
        return members

    def _is_ours(self, member: tarfile.TarInfo) -> bool:
        return (
            member.isfile() and Path(member.name).parent.name == self._FOLDER and Path(member.name).name in self._names
        )

    def _load(self):
        meta, *batches = map(self._read_files().get, self._names)
        for name, batch in zip(self._names[1:], batches, strict=True):
            if not batch or len(batch) % self._RECORD:
                raise UserError(
                    f"data.source: {name} of {self._path} has {len(batch)} bytes, not a multiple of {self._RECORD}; download it again"
                )
        records = np.frombuffer(b"".join(batches), np.uint8).reshape(-1, self._RECORD)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, records[:, 0], meta.decode().split()
