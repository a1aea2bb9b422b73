"""Where images come from: one door, `open_source`, for every kind.

Opening only looks at names, sizes and times of files, so that a training start whose store is
prepared neither decodes an image nor imports anything heavy; images are opened when first read.
"""

import difflib
import os
import re
from pathlib import Path

from ddpm_hf.config import Data
from ddpm_hf.data.archives import Cifar10, Digits, IdxFiles
from ddpm_hf.data.base import Example, Source, file_at, identify, missing_split, near_names, scan, suffix
from ddpm_hf.data.classes import ChosenClasses
from ddpm_hf.data.folder import ImageFolder, image_suffixes
from ddpm_hf.data.tables import TableSource
from ddpm_hf.errors import UserError

__all__ = ["Example", "Source", "open_source"]

_TABLES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # suffix → builder of the `datasets` library
_SPLITS = ("train", "test", "val", "valid", "validation")
_VALIDATION = ("validation", "val", "valid")  # ImageNet's is val, most others' validation
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE = re.compile(r"\.(parquet|arrow|tar|gz|tgz|zip|bin|json|csv|npz|png|jpe?g)$", re.IGNORECASE)


def open_source(data: Data) -> Source:
    """The source that a recipe names. Raises `UserError` where there is none, or nothing in it."""
    path = Path(os.path.expanduser(data.source))
    if data.source == "digits":
        source = Digits(data)
    elif path.is_dir():
        source = _open_folder(path, data)
    elif path.is_file():
        source = _open_file(path, data)
    elif _may_be_hub_id(data.source):
        if difflib.get_close_matches(data.source, ["digits"], cutoff=0.8):
            raise UserError(f"data.source: no such source: {data.source}; did you mean digits?")
        source = TableSource(data, "hub", {"id": data.source, "subset": data.subset}, data.source, name=data.subset)
    else:
        raise UserError(f"data.source: no such file or folder: {data.source}{near_names(path)}")
    if data.subset and source.fingerprint["kind"] != "hub":
        raise UserError(f"data.subset: only data sets on the Hub have subsets; leave it out for {data.source}")
    if (data.image_column or data.label_column) and not isinstance(source, TableSource):
        raise UserError(f"data.source: {data.source} has no columns; leave out data.image_column and data.label_column")
    return ChosenClasses(source, data) if data.classes else source


def _may_be_hub_id(source: str) -> bool:
    """Nothing that could be meant as a path is ever asked of the Hub."""
    in_a_folder_here = "/" in source and os.path.isdir(source.partition("/")[0])
    return (
        bool(_HUB_ID.fullmatch(source))
        and not _FILE.search(source)
        and not in_a_folder_here
        and not os.path.lexists(source)
    )


def _open_file(path: Path, data: Data) -> Source:
    if builder := _TABLES.get(suffix(path.name)):
        return TableSource(data, builder, identify([file_at(path)]), builder, data_files=str(path))
    if path.name.lower().endswith((".tar.gz", ".tgz")):
        return Cifar10(data, path)
    raise UserError(
        f"data.source: {path} is a file of a kind that is not read as a data set; name a .parquet, .arrow or .tar file,"
        " cifar-10-binary.tar.gz, or the folder that holds the images"
    )


def _open_folder(folder: Path, data: Data) -> Source:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return TableSource.saved(data, folder)
    if Cifar10.is_here(folder):
        return Cifar10(data, folder)
    if IdxFiles.is_here(folder):
        return IdxFiles(data, folder)

    also_called = _VALIDATION if data.split in _VALIDATION else ()
    subfolder = next((name for name in (data.split, *also_called) if (folder / name).is_dir()), None)
    root = folder / subfolder if subfolder else folder
    kinds = {**dict.fromkeys(image_suffixes(), "image"), **_TABLES}
    files = scan(root, kinds)
    found = sorted({kinds[suffix(file.name)] for file in files})
    if not found:
        raise UserError(
            f"data.source: {root} holds no images, nor parquet, arrow, webdataset (.tar), IDX or CIFAR-10 files"
        )
    if len(found) > 1:
        raise UserError(
            f"data.source: {root} holds {' and '.join(found)} files; name a folder with one kind, or one file"
        )
    if found != ["image"]:
        return TableSource(data, found[0], identify(files), found[0], data_dir=str(folder))
    splits = [name for name in _SPLITS if (folder / name).is_dir()]
    if not subfolder and (splits or data.split != "train"):
        raise missing_split(data, splits or ["train"])
    return ImageFolder(data, root, files)
