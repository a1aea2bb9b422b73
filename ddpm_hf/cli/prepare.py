"""`ddpm-hf prepare`."""

import argparse
from typing import Any

from ddpm_hf.cli.recipes import add_settings, recipe_from
from ddpm_hf.config import recipe_kind


def add(commands: Any) -> None:
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


def _prepare(options: argparse.Namespace) -> None:
    from ddpm_hf.commands.prepare import prepare

    prepare(options, recipe_from(vars(options), recipe_kind(options.config)))
