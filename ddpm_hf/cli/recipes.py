"""Recipes from the command line: a file, and an option for each of its settings."""

import argparse
import json
import types
import typing
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ddpm_hf.cli.parser import Parser
from ddpm_hf.config import (
    AnyRecipe,
    Recipe,
    Section,
    load_recipe,
    parse_value,
    section_kinds,
    setting_keys,
)


def read_recipe(
    description: str,
    argv: list[str] | None = None,
    kind: type[AnyRecipe] = Recipe,
    defaults: dict[str, Any] | None = None,
) -> tuple[AnyRecipe, bool]:
    """The recipe that a training script was started with, overrides applied, and whether only to print it.

    `defaults`: the script's own, of settings that are not given otherwise.
    """
    parser = Parser(description=description, usage="%(prog)s --config RECIPE [--dry_run] [--section.setting VALUE ...]")
    parser.add_argument(
        "--config",
        required=True,
        metavar="RECIPE",
        help="the recipe: a YAML file, or the name of one that comes with the package",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the resolved recipe and what it will cost, then exit"
    )
    add_settings(parser, kind, defaults or {})
    options = vars(parser.parse(argv))
    return recipe_from(options, kind, defaults), options["dry_run"]


def add_settings(
    parser: argparse.ArgumentParser, kind: type[AnyRecipe] = Recipe, defaults: dict[str, Any] | None = None
) -> None:
    """An option for each setting of the recipe; `defaults` are the command's own."""
    for section in kind.model_fields:
        group = parser.add_argument_group(section)
        kinds = section_kinds(section, kind)
        for name in dict.fromkeys(name for kind in kinds for name in kind.model_fields):
            fields = {kind: kind.model_fields[name] for kind in kinds if name in kind.model_fields}
            own = f" (of this command: {defaults[key]})" if (key := f"{section}.{name}") in (defaults or {}) else ""
            group.add_argument(
                f"--{section}.{name}",
                metavar=_type_name(fields),
                default=argparse.SUPPRESS,
                help=(_help(name, fields, of_all=len(fields) == len(kinds)) + own).replace("%", "%%"),
            )


def recipe_from(
    options: dict[str, Any], kind: type[AnyRecipe] = Recipe, defaults: dict[str, Any] | None = None
) -> AnyRecipe:
    overrides = {key: parse_value(key, options[key], kind) for key in setting_keys(kind) if key in options}
    return load_recipe(options["config"], overrides, kind, defaults)


def _help(name: str, fields: dict[type[Section], FieldInfo], of_all: bool) -> str:
    """Meaning and default; where kinds of denoisers differ, of each."""
    if name == "kind":
        meanings = "; ".join(f"{field.default}: {field.description}" for field in fields.values())
        return f"{meanings} (default: {next(iter(fields.values())).default})"
    texts = {kind: f"{field.description} ({_default(field)})" for kind, field in fields.items()}
    if of_all and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    if len({field.description for field in fields.values()}) == 1:
        defaults = "; ".join(f"{_kind(kind)}: {_default(field)}" for kind, field in fields.items())
        return f"{next(iter(fields.values())).description} ({defaults})"
    return "; ".join(f"{_kind(kind)}: {text}" for kind, text in texts.items())


def _kind(section: type[Section]) -> str:
    return section.model_fields["kind"].default


def _default(setting: FieldInfo) -> str:
    if setting.default is PydanticUndefined:
        return "required"
    value = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    return f"default: {json.dumps(value) if value is None or isinstance(value, bool) else value}"


def _type_name(fields: dict[type[Section], FieldInfo]) -> str:
    kind = next(iter(fields.values())).annotation
    if typing.get_origin(kind) is types.UnionType:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(str(c) for f in fields.values() for c in typing.get_args(f.annotation)) + "}"
    if typing.get_origin(kind) is tuple:
        return "LIST"
    return {int: "INT", float: "NUMBER", bool: "{true,false}", str: "TEXT"}[kind]
