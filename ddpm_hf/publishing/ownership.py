"""Whose a folder is: what `ddpm-hf publish` wrote may be replaced by the next publication, nothing else."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ddpm_hf import __version__
from ddpm_hf.errors import UserError
from ddpm_hf.files import put_in_place, sha256_of

LIST = "publication.json"  # the SHA-256 of every other file, by name
_LITTER = frozenset({".DS_Store", ".ipynb_checkpoints", "Thumbs.db", "__pycache__"})  # of desktops, notebooks, Python


def files_of(folder: Path) -> list[str]:
    """All files below a folder, but for litter; and what else is no folder, or is hidden and empty."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LITTER)
        below = Path(place).relative_to(folder)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(below / name).as_posix() for name in [*sorted(files), *links] if name not in _LITTER]
        if below.name.startswith(".") and not folders and not files:
            found.append(below.as_posix())
    return found


def write_list(folder: Path) -> None:
    """The last file of a folder."""
    names = [name for name in files_of(folder) if name != LIST]
    about = {"ddpm_hf": __version__, "files": {name: sha256_of(folder / name) for name in names}}
    (folder / LIST).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def listed(text: str | bytes) -> dict[str, str] | None:
    """The SHA-256 of files by name, as a list's text has them; None where it is no such list."""
    try:
        files = json.loads(text)["files"]
    except (ValueError, KeyError, TypeError):
        return None
    return files if isinstance(files, dict) else None


def check_place(folder: Path, option: str = "--out") -> None:
    """Raises `UserError` where replacing `folder` would lose what `ddpm-hf publish` did not write, or cannot be."""
    if not folder.name or os.path.ismount(folder):
        raise UserError(
            f"{option}: {folder} cannot be replaced by a finished folder; name one in it, such as {folder / 'hub'}"
        )
    if not folder.exists() and not folder.is_symlink():
        return
    found = _foreign(folder)
    if found is not None:
        raise UserError(f"{folder}: {found}; move it, or choose another {option}")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{option}: {folder} would be replaced, and is where this was started; start elsewhere")


def replace(folder: Path, new: Path, option: str = "--out") -> None:
    """`new` takes the place of `folder`, whole or not at all. Raises `UserError` where it cannot, as `check_place` does."""
    try:
        check_place(folder, option)  # it took long to make `new`
        put_in_place(new, folder)
    except UserError as error:
        raise UserError(f"{error}; what is finished is in {new}") from None
    except OSError as error:
        raise UserError(
            f"{option}: {folder} cannot be replaced: {error.strerror or error}; what is finished is in {new}"
        ) from None


def _foreign(folder: Path) -> str | None:
    """What in it is somebody else's, or was changed by somebody; None where nothing is."""
    if folder.is_symlink() or not folder.is_dir():
        return "is no folder of ddpm-hf publish"
    try:
        digests = listed((folder / LIST).read_bytes())
    except OSError:
        digests = None
    if digests is None:  # without looking through all of it, which may be a home folder
        others = sorted(entry.name for entry in folder.iterdir() if entry.name not in _LITTER)
        return f"holds {others[0]}, which ddpm-hf publish did not write" if others else None
    for name in files_of(folder):
        path = folder / name
        if name != LIST and (path.is_symlink() or not path.is_file() or digests.get(name) != sha256_of(path)):
            return f"{name} in it is not as ddpm-hf publish wrote it"
    return None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else publishes to this folder meanwhile. Raises `UserError` where somebody does."""
    file = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(file, timeout=0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock.acquire()
            if file.exists():  # and not removed by who held it
                break
            lock.release()
    except Timeout:
        raise UserError(f"{folder} is being published to already; wait for that, or choose another --out") from None
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it when it is let go
            file.unlink()
        lock.release()
