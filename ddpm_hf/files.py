"""Files and folders that are complete or as they were, whatever happens while they are written."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.new")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside(folder: Path, state: str) -> Path:
    """The hidden folder beside another one for what it will be, or was."""
    return folder.with_name(f".{folder.name}.{state}")


def put_in_place(new: Path, final: Path) -> None:
    """Renames a folder, which takes the place of the last one of this name; that is there until then.

    Raises `OSError` where it cannot be; what was there is there again.
    """
    old = beside(final, "old")
    shutil.rmtree(old, ignore_errors=True)
    was_there = final.exists()
    if was_there:
        final.rename(old)
    try:
        new.rename(final)
    except OSError:
        if was_there:
            with suppress(OSError):
                old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)
