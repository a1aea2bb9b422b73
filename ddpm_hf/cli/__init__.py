"""The `ddpm-hf` command: one module a subcommand. Heavy imports wait until one of them runs."""

import argparse
import difflib
import sys

from ddpm_hf import __version__
from ddpm_hf.cli import demo, evaluate, prepare, publish, sample, study
from ddpm_hf.cli.parser import Parser
from ddpm_hf.errors import UserError, one_line_errors


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        run(sys.argv[1:] if argv is None else argv)


def run(argv: list[str]) -> None:
    """Raises `UserError` for a mistake."""
    options = parse(argv)
    options.run(options)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="ddpm-hf",
        description="Train a diffusion model of your own; see also train_unconditional.py, train_cfg_latent.py and train_autoencoder.py.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in (sample, demo, evaluate, study, prepare, publish):
        command.add(commands)

    if argv and not argv[0].startswith("-") and argv[0] not in commands.choices:
        near = difflib.get_close_matches(argv[0], commands.choices, n=1)
        raise UserError(
            f"{argv[0]}: no such command; "
            + (f"did you mean {near[0]}?" if near else f"there are {', '.join(commands.choices)}")
        )
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        commands.choices[options.command].parse(argv[1:])
    return options
