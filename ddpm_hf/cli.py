"""Command lines: recipes with overrides, and the `ddpm-hf` command."""

import argparse
import difflib
import json
import math
import sys
import types
import typing
from typing import Any, NoReturn

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ddpm_hf import __version__
from ddpm_hf.config import (
    AnyRecipe,
    Recipe,
    Section,
    did_you_mean,
    load_recipe,
    parse_value,
    recipe_kind,
    section_kinds,
    setting_keys,
)
from ddpm_hf.errors import UserError, one_line_errors


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line, like everything else here."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists what there is")

    def parse(self, argv: list[str] | None) -> argparse.Namespace:
        options, unknown = self.parse_known_args(argv)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            flag = unknown[0].split("=")[0]
            raise UserError(f"{flag}: no such option" + (did_you_mean(flag, known) or "; --help lists them"))
        return options


# ---- recipes -----------------------------------------------------------------------------------------------


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


# ---- ddpm-hf -----------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="ddpm-hf",
        description="Train a diffusion model of your own; see also train_unconditional.py, train_cfg_latent.py and train_autoencoder.py.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    sample = commands.add_parser("sample", help="draw images with a model", description="Draw images with a model.")
    sample.add_argument("model", metavar="MODEL", help="a run folder, a pipeline folder or a Hub id")
    sample.add_argument("--num_images", type=_positive, default=16, metavar="INT", help="images to draw (default: 16)")
    sample.add_argument(
        "--batch_size",
        type=_positive,
        default=16,
        metavar="INT",
        help="images drawn at once; changes no image (default: 16)",
    )
    sample.add_argument(
        "--sampler",
        default="ddpm",
        metavar="{ddpm,ddim,dpmsolver++,unipc,heun}",
        help="ancestral sampling, DDIM, DPM-Solver++(2M), UniPC or Heun's method (default: ddpm)",
    )
    sample.add_argument(
        "--steps", type=_positive, metavar="INT", help="denoising steps (default: every timestep for ddpm, else 50)"
    )
    sample.add_argument(
        "--eta", type=_number, default=0.0, metavar="NUMBER", help="noise of ddim's steps, 0 to 1 (default: 0)"
    )
    sample.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="INT",
        help="seed of the first image; image i has seed + i (default: 0)",
    )
    sample.add_argument(
        "--class",
        dest="class_label",
        metavar="TEXT",
        help="class to draw, by id or name; conditional models only (default: every class in turn)",
    )
    sample.add_argument(
        "--guidance_scale",
        type=_number,
        default=1.0,
        metavar="NUMBER",
        help="s of classifier-free guidance, uncond + s (cond - uncond); the papers' w is s - 1 (default: 1, off)",
    )
    sample.add_argument(
        "--guidance_interval",
        type=_number,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guide only between these noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar) (default: everywhere)",
    )
    sample.add_argument(
        "--out",
        default="samples",
        metavar="PATH",
        help="a folder for PNG files, a .png file for one grid, or an .npz file (default: samples)",
    )
    sample.add_argument(
        "--strip", metavar="PNG", help="also save the denoising film strip of the first images there (default: none)"
    )
    sample.add_argument(
        "--device", metavar="TEXT", help="where to draw, such as cpu or cuda:1 (default: a GPU if there is one)"
    )
    sample.set_defaults(run=_sample)

    prepare = commands.add_parser(
        "prepare",
        help="prepare a recipe's images",
        description="Prepare a recipe's images for training.",
        usage="%(prog)s RECIPE [--preview PNG] [--section.setting VALUE ...]",
    )
    prepare.add_argument(
        "config", metavar="RECIPE", help="a recipe file, or the name of one that comes with the package"
    )
    prepare.add_argument(
        "--preview", metavar="PNG", help="also save a picture of what the model will see there (default: none)"
    )
    add_settings(prepare)
    prepare.set_defaults(run=_prepare)

    with one_line_errors():
        argv = sys.argv[1:] if argv is None else argv
        if argv and not argv[0].startswith("-") and argv[0] not in commands.choices:
            near = difflib.get_close_matches(argv[0], commands.choices, n=1)
            raise UserError(
                f"{argv[0]}: no such command; "
                + (f"did you mean {near[0]}?" if near else f"there are {', '.join(commands.choices)}")
            )
        options, unknown = parser.parse_known_args(argv)
        if unknown:
            commands.choices[options.command].parse(argv[1:])
        options.run(options)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 1")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number of at least 0")
    return number


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 0")
    return int(text)


def _sample(options: argparse.Namespace) -> None:
    from ddpm_hf.commands import sample

    sample(options)


def _prepare(options: argparse.Namespace) -> None:
    from ddpm_hf.commands import prepare

    prepare(options, recipe_from(vars(options), recipe_kind(options.config)))
