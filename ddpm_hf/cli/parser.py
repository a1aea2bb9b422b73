"""Options of a command line, and what they may be."""

import argparse
import math
from typing import Any, NoReturn

from ddpm_hf.config import did_you_mean
from ddpm_hf.errors import UserError


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


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 1")
    return int(text)


def number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number of at least 0")
    return number


def seed_number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 0")
    return int(text)
