"""Recipes as YAML files: read, overridden, written, compared."""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError

from ddpm_hf.config.meaning import without_meaning
from ddpm_hf.config.messages import explain
from ddpm_hf.config.recipes import AnyRecipe, AutoencoderRecipe, Recipe, setting_keys
from ddpm_hf.errors import UserError


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2's plain values. PyYAML alone, at 1.1, reads 1e-4 as text and the precision `no` as false."""

    yaml_implicit_resolvers: ClassVar = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


_YamlLoader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # 010 is ten, not octal


def parse_value(key: str, text: str, kind: type[AnyRecipe] = Recipe) -> Any:
    """A setting's value from the command line, as YAML reads it: 1e-4 is a number, [1, 2] a list, null is None.

    Text is taken as it is, so that it needs no quotes of its own.
    """
    if setting_keys(kind)[key].annotation in (str, str | None) and text != "null":
        return text
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError:
        return text  # which the setting's type will refuse by name


class _YamlDumper(yaml.SafeDumper):
    """Quotes what `_YamlLoader` would not read as text."""

    yaml_implicit_resolvers: ClassVar = _YamlLoader.yaml_implicit_resolvers


def shipped_configs() -> Path | None:
    """The folder of the recipes that come with the package."""
    here = Path(__file__).parent.parent
    return next((folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir()), None)


def recipe_path(name: str) -> Path:
    """A recipe file from its path, or from the name of one that comes with the package (`quickstart`)."""
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return path
    shipped = shipped_configs()
    if shipped is not None and (found := shipped / f"{name.removesuffix('.yaml')}.yaml").is_file():
        return found
    names = sorted(str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml")) if shipped else []
    names = [n for n in names if not n.startswith(("accelerate/", "studies/"))]
    near = difflib.get_close_matches(name.removesuffix(".yaml"), names, n=1)
    near = near or difflib.get_close_matches(Path(name).stem, names, n=1)
    raise UserError(
        f"{name}: no such recipe file"
        + (
            f"; did you mean {near[0]}?"
            if near
            else f"; name a YAML file, or one of {', '.join(n for n in names if '/' not in n)}, latent/…, reports/…"
        )
    )


def recipe_kind(path: str | Path) -> type[AnyRecipe]:
    """What a recipe file describes."""
    return AutoencoderRecipe if _is_autoencoders(_read(recipe_path(str(path)))) else Recipe


def _is_autoencoders(tree: dict[str, Any]) -> bool:
    return "loss" in tree or "latent_channels" in (tree.get("model") or {})


def read_yaml(file: Path) -> Any:
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_YamlLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """A recipe file's sections."""
    tree = read_yaml(file) or {}
    if not isinstance(tree, dict):
        raise UserError(
            f"{file}: a recipe is a mapping of sections such as data: and train:, not a {type(tree).__name__}"
        )
    for section, settings in tree.items():
        if settings is not None and not isinstance(settings, dict):
            raise UserError(f"{file}: {section}: should be a section with settings indented below it, not {settings!r}")
    return {section: dict(settings or {}) for section, settings in tree.items()}


def load_recipe(
    path: str | Path,
    overrides: dict[str, Any] | None = None,
    kind: type[AnyRecipe] = Recipe,
    defaults: dict[str, Any] | None = None,
) -> AnyRecipe:
    """Reads a recipe of this kind and applies overrides such as `{"train.max_steps": 100}`.

    `defaults` are of settings that neither the file nor the overrides give.
    Raises `UserError` with one line that names the key, what is wrong and what would be right.
    """
    file = recipe_path(str(path))
    tree = _read(file)
    if kind is Recipe and _is_autoencoders(tree):
        raise UserError(f"{file}: is the recipe of an autoencoder, which train_autoencoder.py trains")
    if kind is AutoencoderRecipe and (others := [name for name in ("diffusion", "condition") if name in tree]):
        raise UserError(
            f"{file}: is the recipe of a diffusion model, with its section {others[0]}; train_autoencoder.py wants an"
            " autoencoder's, such as latent/digits_autoencoder"
        )
    for key, value in (defaults or {}).items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {}).setdefault(name, value)
    _override(tree, overrides or {}, kind)
    # JSON carries what YAML can say, and lets strict types still take lists as tuples
    try:
        recipe = kind.model_validate_json(json.dumps(tree, default=_as_yaml))
    except ValidationError as error:
        problems = error.errors()
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        told = explain(problems[0], kind)
        key = told.partition(":")[0]
        given_here = any(key == given or key.startswith(f"{given}.") for given in overrides or {})
        raise UserError(f"{'--' if given_here else f'{file}: '}{told}{more}") from None
    name = recipe.run.name or file.stem
    if Path(name).name != name or name in (".", ".."):
        raise UserError(
            f"{file}: run.name: {name!r} should be a plain folder name; the folder above it is run.output_dir"
        )
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"name": name})})


def _as_yaml(value: Any) -> Any:
    """NumPy's numbers as Python's; of anything else its text, which the setting's type refuses by name."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _override(tree: dict[str, dict[str, Any]], overrides: dict[str, Any], kind: type[AnyRecipe]) -> None:
    """Applies overrides to a recipe file's tree, and drops what the file says that they leave without a meaning."""
    model = tree.setdefault("model", {})
    if kind is Recipe:
        model.setdefault("kind", "unet2d")
        if overrides.get("model.kind", model["kind"]) != model["kind"]:
            for name in set(model) - {"kind", "pretrained"}:  # settings of another kind of denoiser
                del model[name]
    for one, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if overrides.get(f"train.{one}") is not None and tree.get("train", {}).get(other) is not None:
            if f"train.{other}" not in overrides:
                del tree["train"][other]
            if tree["train"].get("learning_rate_drops") and "train.learning_rate_drops" not in overrides:
                unit = {"epochs": "epochs", "max_steps": "steps"}
                raise UserError(
                    f"--train.learning_rate_drops: {tree['train']['learning_rate_drops']} in the recipe are {unit[other]};"
                    f" with train.{one} give them in {unit[one]}"
                )
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value

    def value(key: str) -> Any:
        section, _, name = key.partition(".")
        return tree.get(section, {}).get(name, keys[key].default)

    keys = setting_keys(kind)
    for key, (cause, _) in without_meaning(value, keys).items():
        section, _, name = key.partition(".")
        if cause in overrides and key not in overrides:
            tree.get(section, {}).pop(name, None)


def dump_recipe(recipe: AnyRecipe) -> str:
    """The recipe as YAML, every setting written out; `load_recipe` reads it back equal."""
    tree = recipe.model_dump(mode="json")
    if getattr(recipe.model, "pretrained", None) is not None:
        tree["model"] = {name: tree["model"][name] for name in ("kind", "pretrained")}
    keys = [f"{section}.{name}" for section, settings in tree.items() for name in settings]
    for key in without_meaning(lambda key: tree[key.partition(".")[0]][key.partition(".")[2]], keys):
        section, _, name = key.partition(".")
        del tree[section][name]
    return yaml.dump(tree, Dumper=_YamlDumper, sort_keys=False, default_flow_style=None, width=120)


def differences(old: AnyRecipe, new: AnyRecipe) -> list[tuple[str, Any, Any]]:
    """Settings that differ although a resumed run may not change them: (key, old value, new value)."""
    found = []
    for section in type(new).model_fields:
        for name, field in type(getattr(new, section)).model_fields.items():
            a, b = getattr(getattr(old, section), name, None), getattr(getattr(new, section), name)
            if a != b and not field.json_schema_extra["may_change"]:
                found.append((f"{section}.{name}", a, b))
    if new.train.learning_rate_schedule in ("linear", "cosine"):  # the rate at every step depends on the length
        for name in ("max_steps", "epochs"):
            a, b = getattr(old.train, name), getattr(new.train, name)
            if a != b:
                found.append((f"train.{name}", a, b))
    elif new.train.learning_rate_drops and (old.train.epochs is None) != (new.train.epochs is None):
        found.append(("train.epochs", old.train.epochs, new.train.epochs))  # the unit of learning_rate_drops
    return found
