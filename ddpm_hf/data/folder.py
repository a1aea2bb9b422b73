"""A folder of image files, one subfolder a class."""

from functools import cache
from pathlib import Path

from ddpm_hf.config import Data
from ddpm_hf.data.base import Example, File, Source, identify
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

    def read(self, start: int, stop: int) -> list[Example]:
        paths = [f"{self._root}/{name}" for name in self._names[start:stop]]
        return [Example(path, label, path) for path, label in zip(paths, self._labels[start:stop], strict=True)]
