"""A user's mistake, told in one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Says in one line what is wrong and what would be right. Commands print it and exit with 2."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a command with one line and exit code 2 where a `UserError` reaches it, never a traceback."""
    try:
        yield
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:  # every process of a launch finds the same mistake
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
