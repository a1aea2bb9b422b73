"""What names a place on this machine, and is nobody else's business, taken out of what is published."""

import os
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import constants

from ddpm_hf.config import Recipe
from ddpm_hf.config.checks import REPO_ID
from ddpm_hf.config.sections import Hub, Run

_OWN_NAMES = ("inception", "dinov2", "efficientnet_lite0", "classifier", "train", "validation")  # of evaluations
_STARTS = ("~", "./", "../", ".\\", "..\\")
_WITHIN = re.compile(  # an absolute path in a sentence; 1/2, images/s and https:// are none
    r"(?<![\w:/\\.~-])(?:~|[A-Za-z]:)?(?:[\\/][^\s\\/'\",;:()<>|]+)+[\\/]?"
)


def is_hub_id(text: str, was_here: bool | None, run: Path) -> bool:
    """Whether a setting's text names something on the Hub; in doubt it is a place.

    was_here: whether it named a place when the run was trained, None where that was not noted
    """
    if not REPO_ID.fullmatch(text) or text.startswith("runs/") or was_here:
        return False
    if was_here is not None:
        return True
    # relative paths mean what they did where the training was started: above its run folder, as a rule
    near = (folder / text.partition("/")[0] for folder in run.resolve().parents)
    return not any(map(os.path.lexists, near)) and _in_cache(text)


def _in_cache(repo_id: str) -> bool:
    """Whether the Hub's client has fetched it to this machine."""
    name = f"models--{repo_id.replace('/', '--')}"
    return os.path.isdir(os.path.join(constants.HF_HUB_CACHE, name))


def last_name(path: str) -> str:
    """Of a path of this system or another."""
    return PureWindowsPath(path.rstrip("/\\")).name or "here"


def without_places(value: Any) -> Any:
    """JSON whose texts name no absolute path: of each the last name is left."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(_STARTS) or PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
        return last_name(value)
    return _WITHIN.sub(lambda found: last_name(found[0]), value)


def public_record(record: dict[str, Any], local: Recipe, recipe: Recipe, run: Path) -> dict[str, Any]:
    """An evaluation's record for others.

    local: the run's recipe as it is, recipe: as it is published
    """
    known = {local.data.source: recipe.data.source}
    record = dict(record) | {"model": recipe.run.name}
    for role in ("reference", "images"):  # a network's weights are named without their place already
        about = record.get(role)
        if isinstance(about, dict) and isinstance(text := about.get("source"), str):
            record[role] = about | {"source": known[text] if text in known else _public_text(text, run)}
    return without_places(record)


def _public_text(text: str, run: Path) -> str:
    """Of what may be a relative path, the last name; "cleanfid:cifar10:32:train" is none, nor is an address."""
    if ":" in text.partition("/")[0] or is_hub_id(text, None, run):
        return without_places(text)
    return last_name(text)


def public_recipe(recipe: Recipe, from_hub: bool, here: Collection[str] | None, run: Path) -> tuple[Recipe, list[str]]:
    """A run's recipe for others: places here are left as names, where they mean nothing without; and which they were.

    from_hub: whether data.source is an id on the Hub
    here: the settings that named a place when it was trained, None where that was not noted
    """
    places = []

    def public(section: str, *names: str) -> dict[str, str]:
        settings, local = getattr(recipe, section), {}
        for name in names:
            key, value = f"{section}.{name}", getattr(settings, name)
            if value is None or value in _OWN_NAMES or value.startswith("cleanfid:"):
                continue
            if not is_hub_id(value, None if here is None else key in here, run):
                local[name] = last_name(value)
                places.append(key)
        return local

    data: dict[str, str | None] = {"store": None, **public("data", "classes")}
    if not from_hub and recipe.data.source != "digits":
        data["source"] = last_name(recipe.data.source)
        places.append("data.source")
    changed = {
        "run": Run(name=recipe.run.name, seed=recipe.run.seed),
        "data": recipe.data.model_copy(update=data),
        "autoencoder": recipe.autoencoder.model_copy(update=public("autoencoder", "source")),
        "model": recipe.model.model_copy(update=public("model", "pretrained")),
        "hub": Hub(),  # where one user pushes to
    }
    if recipe.evaluate.every is not None:
        of_evaluation = public("evaluate", "extractor", "extractor_weights", "reference")
        changed["evaluate"] = recipe.evaluate.model_copy(update=of_evaluation)
    return recipe.model_copy(update=changed), sorted(places)
