"""A user's mistake, told in one line."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Says in one line what is wrong and what would be right. Commands print it and exit with 2."""


class ProcessError(UserError):
    """A `UserError` that one process of several may meet alone, such as a full memory."""


class UnreachableError(UserError):
    """A `UserError` for want of a network alone."""


@contextmanager
def full_disks_told() -> Iterator[None]:
    """A full disk or a quota that is reached becomes a `UserError`, wherever it was met."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ProcessError(
            f"{error.filename or 'a file'} cannot be written: {error.strerror}; make room and run the same command again"
        ) from None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a command with one line and exit code 2 where a `UserError` or a full disk reaches it, never a traceback."""
    try:
        with full_disks_told():
            yield
    except UserError as error:
        # a mistake that all processes of a machine find is told once
        if isinstance(error, ProcessError) or int(os.environ.get("LOCAL_RANK", 0)) == 0:
            _tell(str(error))
    except KeyboardInterrupt:  # outside of a training loop, which answers it by itself
        if int(os.environ.get("RANK", 0)) == 0:
            print("interrupted; the same command goes on", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    else:
        return
    raise SystemExit(2)


def _tell(text: str) -> None:
    process = os.environ.get("RANK", "0")
    print(f"error: {text}" if process == "0" else f"error in process {process}: {text}", file=sys.stderr, flush=True)
