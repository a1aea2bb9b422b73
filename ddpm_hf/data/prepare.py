"""Any source → the prepared store. Interrupted, it goes on where it stopped."""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ddpm_hf.config import Data
from ddpm_hf.data.base import Source
from ddpm_hf.data.shards import Span, spans_of, write_shards
from ddpm_hf.data.sources import open_source
from ddpm_hf.data.store import PreparedStore, is_written, manifest_of, read_json, source_indices, write_json
from ddpm_hf.errors import ProcessError, UserError

logger = logging.getLogger(__name__)

_LOCK, _PARTIAL = ".lock", "partial.json"
_OURS = re.compile(
    r"\..*|(shard-\d+\.(bin|npy)|manifest\.json|partial\.json)(\.\d+\.tmp)?"
)  # and hidden files, as of the desktop
_NAMES = {  # of parts of a fingerprint, in messages
    ("source", "split"): "data.split",
    ("autoencoder", "weights"): "another autoencoder's weights",
    ("autoencoder", "tiling"): "autoencoder.tiling",
    ("latents", "dtype"): "autoencoder.latent_dtype",
    ("latents", "mirrored"): "data.flip",
}


def prepare(
    data: Data, *, check: Callable[[Source], None] = lambda source: None, progress: bool = True
) -> PreparedStore:
    """The store of a recipe's images; made if it is missing, completed if it was interrupted.

    Of several processes that call this at once, one prepares and the others wait for it. Raises `UserError` for a source that cannot be
    opened, an image that cannot be read (unless data.on_bad_image is skip), a store of other images, or a full disk.
    """
    source = open_source(data)
    wanted = fingerprint(data, source)
    folder = store_folder(data, wanted)
    if store := finished(data, folder, wanted):
        return store
    check(source)
    return _prepare(data, source, wanted, folder, progress)


def validation_data(data: Data) -> Data | None:
    """The validation split as a data section of its own, in a store of its own; None where there is none."""
    if data.validation_split is None:
        return None
    return data.model_copy(
        update={
            "split": data.validation_split,
            "validation_split": None,
            "store": data.store and f"{data.store.rstrip('/')}-{data.validation_split}",
        }
    )


def images_in(data: Data) -> int:
    """How many images there are, without preparing them: those prepared, else those of the source, good or bad."""
    source = open_source(data)
    wanted = fingerprint(data, source)
    folder = store_folder(data, wanted)
    has = (read_json(folder / "manifest.json") or {}).get("fingerprint", {})
    of_latents = {
        part: has[part] for part in ("autoencoder", "latents") if part in has
    }  # whatever they are, they count
    store = finished(data, folder, wanted | of_latents)
    return len(source) if store is None else len(store)


def fingerprint(data: Data, source: Source) -> dict:
    """All that the stored bytes depend on; what is drawn when they are read (flip, where to crop) is not part of it."""
    settings = ("channels", "crop", "image_column", "label_column")
    transforms = {"resolution": list(data.resolution), "filter": "bicubic"} | {
        name: getattr(data, name) for name in settings
    }
    return {"source": source.fingerprint, "transforms": transforms}


def store_folder(data: Data, wanted: dict) -> Path:
    """data.store, or a name that a reader recognises and that differs where the content does."""
    if data.store:
        return Path(os.path.expanduser(data.store))
    name = (
        re.sub(r"[^\w.-]+", "-", data.source.replace("\\", "/").rstrip("/").rpartition("/")[2]).strip(".-") or "images"
    )
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    size = "x".join(map(str, (*data.resolution, data.channels))) + ("-latents" if "latents" in wanted else "")
    return Path("prepared") / f"{name}-{size}-{digest[:10]}"


def finished(data: Data, folder: Path, wanted: dict) -> PreparedStore | None:
    """The store if it is complete. Raises `UserError` if it is another than the one wanted."""
    if not (folder / "manifest.json").is_file():
        return None
    store = PreparedStore(folder)
    _refuse_difference(folder, store.fingerprint, wanted)
    skipped = store.manifest["skipped"]["count"]
    if skipped and data.on_bad_image == "stop":
        raise UserError(
            f"data.on_bad_image: {folder} was prepared without {skipped} images that cannot be read; set skip, or delete it"
        )
    return store


def _refuse_difference(folder: Path, has: dict, wanted: dict) -> None:
    remedy = "delete it or name another folder"
    if ("latents" in has) != ("latents" in wanted):
        kinds = ("latents", "pixels") if "latents" in has else ("pixels", "latents")
        raise UserError(f"data.store: {folder} holds {kinds[0]}, the recipe wants {kinds[1]}; {remedy}")
    for part in ("transforms", "source", "autoencoder", "latents"):
        a, b = has.get(part, {}), wanted.get(part, {})
        for key in a | b:
            if a.get(key) != b.get(key):
                raise UserError(f"data.store: {_difference(folder, part, key, a.get(key), b.get(key))}; {remedy}")


def _difference(folder: Path, part: str, key: str, has: object, wanted: object) -> str:
    if part == "source" and key == "sha256":
        return f"the files of data.source are not those that {folder} was prepared from: a name, size or time differs"
    if part == "source" and key == "classes":
        return f"{folder} was prepared with data.classes choosing {has or 'all'}, the recipe wants {wanted or 'all'}"
    if key == "weights":
        has, wanted = f"{has[:7]}…", f"{wanted[:7]}…"
    named = {"transforms": f"data.{key}", "source": f"data.source ({key})", "autoencoder": f"the autoencoder's {key}"}
    name = _NAMES.get((part, key)) or named.get(part, key)
    return f"{folder} was prepared with {name} {has}, the recipe wants {wanted}"


def _prepare(data: Data, source: Source, wanted: dict, folder: Path, progress: bool) -> PreparedStore:
    make_folder(data, source, folder)
    with alone_in(folder):
        if store := finished(data, folder, wanted):  # another process's, while this one waited
            return store
        record = math.prod(data.resolution) * data.channels
        spans = begin(folder, wanted, len(source), _shard_size(len(source), record))
        _write_missing(data, source, folder, spans, record, progress)
        complete(data, source, folder, spans, {"fingerprint": wanted, "dtype": "uint8", "channels": data.channels})
    return PreparedStore(folder)


def make_folder(data: Data, source: Source, folder: Path) -> None:
    """Raises `UserError` for a folder of other files, or a source without images."""
    if folder.is_dir() and not all(_OURS.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(f"data.store: {folder} holds other files and is no prepared store; name a new or empty folder")
    if not len(source):
        raise UserError(f"data.source: {data.source} has no images in its split {data.split}")
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def alone_in(folder: Path, brief: bool = False) -> Iterator[None]:
    """One process at a time. brief: nobody stays long, so that waiting is not worth a word."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=brief)
    except Timeout:
        logger.warning("another process is preparing %s; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def begin(folder: Path, wanted: dict, total: int, shard_size: int) -> list[Span]:
    """The shards of a store, as a process before this one cut them where there was one. Needs `alone_in`."""
    partial = read_json(folder / _PARTIAL)
    if partial is None:
        if any(folder.glob("shard-*")):
            raise UserError(
                f"data.store: {folder} holds shards of unknown origin, without manifest.json or {_PARTIAL}; delete it"
            )
        partial = {"fingerprint": wanted, "shard_size": shard_size}
        write_json(folder / _PARTIAL, partial)
    _refuse_difference(folder, partial["fingerprint"], wanted)
    return spans_of(total, partial["shard_size"])


def shard_size(total: int, record: int, most: int) -> int:
    """Images a shard: at most `most` or 64 MiB, to spread work and lose little; but at most 512 shards, each an open file."""
    return max(min(most, 2**26 // record), -(-total // 512), 1)


def _shard_size(total: int, record: int) -> int:
    return shard_size(total, record, most=4096)


def _write_missing(data: Data, source: Source, folder: Path, spans: list[Span], record: int, progress: bool) -> None:
    from tqdm import tqdm

    todo = [span for span in spans if not is_written(folder, span.number)]
    total, left = spans[-1].stop, sum(span.stop - span.start for span in todo)
    check_space(folder, left * record * (1 if data.crop == "center" else 1.5))  # photographs are about 3:2
    workers, warned = data.prepare_workers or os.cpu_count() or 1, False
    title = f"preparing {folder.name}"
    with tqdm(total=total, initial=total - left, desc=title, unit="img", disable=not progress) as bar, writing(folder):
        try:
            for written in write_shards(data, source, folder, todo, workers):
                if written.bad and not warned:
                    warn_of_bad_images(written.first_bad)
                    warned = True
                bar.update(written.images)
        except BrokenExecutor:
            raise ProcessError(
                f"data.prepare_workers: one of {workers} processes was ended by the system, perhaps for lack of memory; set fewer"
            ) from None


def warn_of_bad_images(first: str) -> None:
    logger.warning("skipping images that cannot be read; the first is %s", first)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Makes a full or failing disk a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data.store: {folder} cannot be written: {error.strerror or error}; make room and run the same command"
            " again, which goes on from here"
        ) from None


def check_space(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"needs about {needed / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free"
        raise UserError(f"data.store: {folder} {sizes}; free some, or name a folder on a larger disk")


def complete(
    data: Data,
    source: Source,
    folder: Path,
    spans: list[Span],
    content: dict,
    measure: Callable[[PreparedStore], dict] = lambda store: {},
) -> None:
    """Writes the manifest: content, and what `measure` finds in the shards. What the source has and they lack was skipped.

    content: fingerprint, dtype and channels. Needs `alone_in`.
    """
    total = spans[-1].stop
    skipped = np.setdiff1d(np.arange(total), np.concatenate(source_indices(folder, len(spans)))).tolist()
    names = [source.read(i, i + 1)[0].name for i in skipped[:100]]
    if len(skipped) == total:
        raise UserError(
            f"data.source: none of the {total} images of {data.source} can be read; the first is {names[0]}"
        )
    if skipped:
        logger.warning(
            "skipped %d of %d images that cannot be read; their names are in %s",
            len(skipped),
            total,
            folder / "manifest.json",
        )
    content = content | {"class_names": source.class_names, "skipped": {"count": len(skipped), "names": names}}
    manifest = manifest_of(folder, len(spans), content)
    write_json(folder / "manifest.json", manifest | measure(PreparedStore(folder, manifest)))
    (folder / _PARTIAL).unlink()
