"""What names a place on this machine, and is nobody else's business, taken out of what is published."""

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ddpm_hf.config import Recipe
from ddpm_hf.config.sections import Hub, Run

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_STARTS = ("~", "./", "../", ".\\", "..\\")
_WITHIN = re.compile(  # an absolute path in a sentence; 1/2, images/s and https:// are none
    r"(?<![\w:/\\.~-])(?:~|[A-Za-z]:)?(?:[\\/][^\s\\/'\",;:()<>|]+)+[\\/]?"
)


def is_hub_id(text: str) -> bool:
    """Whether a setting's text names something on the Hub, and nothing here."""
    here = os.path.lexists(Path(text).expanduser()) or ("/" in text and os.path.isdir(text.partition("/")[0]))
    return bool(_ID.fullmatch(text)) and not text.startswith("runs/") and not here


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


def public_recipe(recipe: Recipe, from_hub: bool) -> tuple[Recipe, list[str]]:
    """A run's recipe for others: places here are left as names, where they mean nothing without; and which they were.

    from_hub: whether data.source is an id on the Hub
    """
    places = []

    def public(section: str, *names: str) -> dict[str, str]:
        settings = getattr(recipe, section)
        found = {name: value for name in names if (value := getattr(settings, name)) is not None}
        local = {name: last_name(value) for name, value in found.items() if not is_hub_id(value)}
        places.extend(f"{section}.{name}" for name in local)
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
