"""Everything that the `datasets` library reads: parquet, arrow and webdataset files, saved data sets, the Hub."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ddpm_hf.config import Data
from ddpm_hf.data.base import NO_LABEL, Example, Source, identify, missing_split, scan
from ddpm_hf.errors import UnreachableError, UserError

if TYPE_CHECKING:
    import datasets

_LABEL_NAMES = ("label", "labels", "cls", "class")


class _Table(NamedTuple):
    rows: "datasets.Dataset"
    image: str  # column
    label: str | None  # column
    label_of: dict  # values that are not labels already, such as a class's name
    class_names: list[str] | None


class TableSource(Source):
    """Opened when first read or measured; what is wrong with it is told then."""

    def __init__(self, data: Data, kind: str, content: dict, path: str | None, **where: str):
        self.fingerprint = {"kind": kind, "split": data.split} | content
        self._data, self._path, self._where = data, path, where

    @classmethod
    def saved(cls, data: Data, folder: Path) -> "TableSource":
        """A folder that `datasets.save_to_disk` wrote, of one data set or of its splits."""
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        if splits and data.split not in splits:
            raise missing_split(data, splits)
        root = folder / data.split if splits else folder
        return cls(data, "saved", identify(scan(root, {".arrow", ".json"})), None, dataset_path=str(root))

    @cached_property
    def _table(self) -> _Table:  # pickles as the paths of its memory-mapped files, so workers open no source twice
        import datasets

        rows = self._open()
        image, label = _image_column(rows, self._data), _label_column(rows, self._data)
        names, label_of = _classes(rows, label) if label else (None, {})
        rows = rows.select_columns([image, label] if label else [image]).cast_column(
            image, datasets.Image(decode=False)
        )
        return _Table(rows, image, label, label_of, names)

    def _open(self) -> "datasets.Dataset":
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        data = self._data
        try:
            if self._path is None:
                return datasets.load_from_disk(**self._where)
            splits = datasets.load_dataset(self._path, **self._where)
        except ConnectionError as error:
            raise UnreachableError(
                f"data.source: the Hub cannot be reached for {data.source} ({_first_line(error)}); name a local folder instead"
            ) from None
        except DatasetNotFoundError:
            raise UserError(
                f"data.source: {data.source} is no file or folder here, nor a data set on the Hub that can be read without logging in"
            ) from None
        except (ValueError, RuntimeError, OSError, datasets.exceptions.DatasetsError) as error:
            cause = error.__cause__ or error
            raise UserError(
                f"data.source: {data.source} cannot be opened by the datasets library: {_first_line(cause)}"
            ) from None
        if data.split not in splits:
            raise missing_split(data, splits)
        return splits[data.split]

    @property
    def class_names(self) -> list[str] | None:
        return self._table.class_names

    def __len__(self) -> int:
        return len(self._table.rows)

    @property
    def labels(self) -> np.ndarray:
        table = self._table
        if table.label is None:
            return np.full(len(self), NO_LABEL)
        column = table.rows.select_columns([table.label]).with_format("arrow")[:][table.label].to_pylist()
        found = (_label(table.label_of.get(value, value)) for value in column)
        return np.fromiter((NO_LABEL if label is None else label for label in found), np.int64, len(column))

    def take(self, indices: Sequence[int]) -> list[Example]:
        table = self._table
        batch = table.rows[indices]  # a range is a slice of the table; scattered rows are gathered
        images = batch[table.image]
        labels = batch[table.label] if table.label else [None] * len(images)
        return [
            Example(_encoded(image), _label(table.label_of.get(value, value)), f"row {i} of {self._data.source}")
            for i, image, value in zip(indices, images, labels, strict=True)
        ]


def _label(value: int | None) -> int | None:
    return None if value is None or value < 0 else value  # the library's -1 is a hidden label


def _encoded(image: dict | None) -> str | bytes:
    """What `Image(decode=False)` gives, a missing image as empty bytes, which nobody can read."""
    image = image or {}
    return image["bytes"] if image.get("bytes") is not None else image.get("path") or b""


def _image_column(table: "datasets.Dataset", data: Data) -> str:
    found = [name for name, feature in table.features.items() if _holds_images(feature)]
    if data.image_column:
        return _named(data.image_column, "image_column", found, table)
    if len(found) != 1:
        which = (
            f"{', '.join(found)} all hold images"
            if found
            else f"no column of {data.source} holds images; it has {', '.join(table.column_names)}"
        )
        raise UserError(f"data.image_column: {which}" + ("; name one" if found else ""))
    return found[0]


def _holds_images(feature) -> bool:
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _label_column(table: "datasets.Dataset", data: Data) -> str | None:
    import datasets

    plain = {name for name, feature in table.features.items() if _is_plain(feature)}
    if data.label_column:
        return _named(data.label_column, "label_column", sorted(plain), table)
    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    found = found or [name for name in table.column_names if name.lower() in _LABEL_NAMES and name in plain]
    if len(found) > 1:
        raise UserError(f"data.label_column: {', '.join(found)} all hold labels; name one")
    return found[0] if found else None


def _is_plain(feature) -> bool:
    dtype = getattr(feature, "dtype", None)
    return isinstance(dtype, str) and dtype.startswith(("int", "uint", "string", "large_string"))


def _named(column: str, setting: str, fitting: list[str], table: "datasets.Dataset") -> str:
    if column not in table.column_names:
        raise UserError(f"data.{setting}: no column {column}; there are {', '.join(table.column_names)}")
    if column not in fitting:
        what = "images" if setting == "image_column" else "whole numbers or text"
        raise UserError(
            f"data.{setting}: {column} does not hold {what}" + (f"; {', '.join(fitting)} would do" if fitting else "")
        )
    return column


def _classes(table: "datasets.Dataset", column: str) -> tuple[list[str] | None, dict]:
    """Class names, and the label of each value that is not one already."""
    feature = table.features[column]
    if getattr(feature, "names", None):
        return list(feature.names), {}
    values = [value for value in table.unique(column) if value is not None]
    if not values:
        return None, {}
    if isinstance(values[0], int):
        return [str(label) for label in range(max(0, max(values) + 1))] or None, {}
    names = sorted(values)
    return names, {name: label for label, name in enumerate(names)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
