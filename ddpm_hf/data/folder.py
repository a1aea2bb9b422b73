"""A folder of image files, one subfolder a class."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ddpm_hf.config import Data
from ddpm_hf.data.base import NO_LABEL, Example, File, Source, identify
from ddpm_hf.errors import UserError

# Pillow lists these as readable, but reads them only with another program's help
_NOT_BY_ITSELF = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the image files that Pillow reads, such as .jpg."""
    from PIL import Image

    return frozenset(
        s for s, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _NOT_BY_ITSELF
    )


class ImageFolder(Source):
    def __init__(self, data: Data, root: Path, files: list[File]):
        self._root, self._names = str(root), [file.name for file in files]
        self.fingerprint = {"kind": "folder", "split": data.split, **identify(files)}
        tops = [name.partition("/")[0] if "/" in name else None for name in self._names]
        classes = sorted(set(tops) - {None})
        if classes and None in tops:
            stray = self._names[tops.index(None)]
            raise UserError(
                f"data.source: {root}/{stray} lies beside the class folders ({classes[0]}, …); move it into one of them"
            )
        self.class_names = classes or None
        number = {name: label for label, name in enumerate(classes)} | {None: None}
        self._labels = [number[top] for top in tops]

    def __len__(self) -> int:
        return len(self._names)

    @property
    def labels(self) -> np.ndarray:
        return np.array([NO_LABEL if label is None else label for label in self._labels], np.int64)

    def take(self, indices: Sequence[int]) -> list[Example]:
        paths = [f"{self._root}/{self._names[i]}" for i in indices]
        return [Example(path, self._labels[i], path) for i, path in zip(indices, paths, strict=True)]
