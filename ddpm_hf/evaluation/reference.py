"""What images are compared with: other images, whose statistics are computed once, or published statistics."""

import functools
import hashlib
import json
import logging
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from ddpm_hf.config import Data, load_recipe
from ddpm_hf.data.prepare import prepare, validation_data
from ddpm_hf.data.sampler import split_held_out
from ddpm_hf.data.store import read_json, write_json
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.extraction import extract, from_main
from ddpm_hf.evaluation.extractors.base import Extractor
from ddpm_hf.evaluation.image_files import ArchiveImages, FolderImages, holds_images
from ddpm_hf.evaluation.images import Chosen, Images, StoreImages
from ddpm_hf.evaluation.statistics import UNKNOWN_COUNT, Moments, Statistics
from ddpm_hf.files import sha256_of

logger = logging.getLogger(__name__)

_VERSION = 1  # of how images become features; a change that moves any makes new files
_PUBLISHED = re.compile(r"cleanfid:([\w.-]+):(\d+):([\w.-]+)")


@dataclass(frozen=True)
class PublishedStatistics:
    """clean-fid's own, of Inception's features with its clean resize: mean and covariance, downloaded once."""

    name: str
    resolution: int
    split: str

    @property
    def called(self) -> str:
        return f"cleanfid:{self.name}:{self.resolution}:{self.split}"

    def load(self) -> Statistics:
        from cleanfid.features import get_reference_statistics

        try:
            mean, covariance = get_reference_statistics(self.name, self.resolution, split=self.split)
        except OSError as error:  # of the network too
            raise UserError(
                f"{self.called}: cannot be had ({error}); check name, resolution and split at"
                " https://github.com/GaParmar/clean-fid, or name images instead"
            ) from None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise UserError(
                f"{self.called}: the file in clean-fid's own folder, {_stats_folder()}, is broken; delete it"
            ) from None
        return Statistics(Moments.of(mean, covariance, UNKNOWN_COUNT))


Reference = Images | PublishedStatistics


def open_reference(
    text: str, called: str, data: Data | None, seed: int = 0, number: int | None = None, progress: bool = True
) -> Reference:
    """What `text` names: train or validation, the images of `data`; a folder of images; an .npz file of them; a recipe or a
    run folder, whose training images are meant; or clean-fid's `cleanfid:NAME:RES:SPLIT`.

    called: how the user gave it, `--reference` or a setting's key
    data, seed: of the model's recipe; None of a model without one
    number: compare with so many of them, at random by seed 0
    progress: show bars, of one process of several
    """
    if text.startswith("cleanfid:"):
        if (found := _PUBLISHED.fullmatch(text)) is None:
            raise UserError(f"{called}: {text} should be cleanfid:NAME:RES:SPLIT, such as cleanfid:cifar10:32:test")
        if number is not None:
            raise UserError(f"{called}_images: published statistics are of all their images; leave it out")
        return PublishedStatistics(found[1], int(found[2]), found[3])
    images = _open_images(text, called, data, seed, progress)
    if number is None or number == len(images):
        return images
    if number > len(images):
        raise UserError(f"{called}_images: {number} are more than there are, {len(images)}")
    return Chosen(images, number)


def _open_images(text: str, called: str, data: Data | None, seed: int, progress: bool) -> Images:
    path = Path(os.path.expanduser(text))
    if text in ("train", "validation"):
        if data is None:
            raise UserError(
                f"{called}: {text} is of a run, whose recipe says what it was trained on; name a folder of images, a recipe,"
                " or cleanfid:NAME:RES:SPLIT"
            )
        return training_images(data, seed) if text == "train" else validation_images(data, seed, called)
    if (path / "recipe.yaml").is_file():
        return _of_recipe(path / "recipe.yaml")
    if path.is_dir():
        if not holds_images(path):
            raise UserError(f"{called}: {text} holds no image files such as .png")
        return FolderImages(path, f"{called}: {text}", progress)
    if path.suffix == ".npz":
        if not path.is_file():
            raise UserError(f"{called}: {text}: no such file")
        return ArchiveImages(path, f"{called}: {text}")
    try:
        return _of_recipe(text)
    except UserError as error:
        if "no such recipe file" not in str(error):
            raise
        raise UserError(
            f"{called}: {text} is neither a folder of images, nor train, validation, a recipe or cleanfid:NAME:RES:SPLIT"
        ) from None


def _of_recipe(name: str | Path) -> StoreImages:
    recipe = load_recipe(name)
    return training_images(pixels(recipe.data, recipe.autoencoder.source is not None), recipe.run.seed)


def pixels(data: Data, latents: bool) -> Data:
    """A recipe's data section for its images; of a model of latents, whose store may be named, in a store of their own."""
    return data.model_copy(update={"store": None}) if latents else data


def training_images(data: Data, seed: int) -> StoreImages:
    """Those that are trained on: all but what data.held_out, by the run's seed, keeps out. Prepared where they are not yet."""
    store = prepare(data)
    train, _ = split_held_out(len(store), data.held_out, seed)
    return StoreImages(store, data, train, "train" if data.held_out else None)


def validation_images(data: Data, seed: int, called: str = "--reference") -> StoreImages:
    if (split := validation_data(data)) is not None:
        return StoreImages(prepare(split), split)
    if not data.held_out:
        raise UserError(f"{called}: this run has no images to validate on (data.held_out, data.validation_split)")
    store = prepare(data)
    return StoreImages(store, data, split_held_out(len(store), data.held_out, seed)[1], "held out")


def reference_statistics(
    reference: Reference, extractor: Extractor, state: PartialState, features: bool
) -> tuple[Statistics | None, bool]:
    """The reference's statistics, on the main process, and whether they were there already.

    They are kept beside the prepared images, in statistics/, named by a digest of the images (content, size, which of
    them) and of the extractor's identity; a file beside them says so, and what they should hash to. What is not exactly
    that, or lacks the features where they are needed, is computed anew. All processes take part.
    """
    if isinstance(reference, PublishedStatistics):
        return (reference.load() if state.is_main_process else None), True
    key = statistics_key(reference, extractor)
    folder = reference.cache / "statistics"
    file = folder / f"{digest(key)[:20]}.npz"
    found = _load(file, key, features) if state.is_main_process else None
    if from_main(found is not None, state):
        return found, True
    extracted = extract(reference, extractor, state, features=features, title=f"reference: {reference.called}")
    if extracted is None:
        return None, False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save(extracted.statistics, file, key)
    except OSError as error:
        _warn_once(f"{folder} cannot be written ({error.strerror or error}): the reference's statistics are not kept")
    return extracted.statistics, False


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def statistics_key(reference: Images, extractor: Extractor) -> dict:
    return {
        "version": _VERSION,
        "images": reference.content,
        "num_images": len(reference),
        "shape": list(reference.shape),
        "extractor": extractor.identity,
    }


def digest(content: object) -> str:
    """Of anything that is JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _load(file: Path, key: dict, features: bool) -> Statistics | None:
    try:
        about = read_json(file.with_suffix(".json"))
    except ValueError:
        return None
    if not isinstance(about, dict) or about.get("key") != json.loads(json.dumps(key)) or not file.is_file():
        return None
    if (features and not about.get("features")) or about.get("sha256") != sha256_of(file):
        return None
    return Statistics.load(file)


def _save(statistics: Statistics, file: Path, key: dict) -> None:
    statistics.save(file)
    write_json(
        file.with_suffix(".json"),
        {"key": key, "features": statistics.features is not None, "sha256": sha256_of(file)},
    )


def _stats_folder() -> str:
    import cleanfid

    return os.path.join(os.path.dirname(cleanfid.__file__), "stats")
