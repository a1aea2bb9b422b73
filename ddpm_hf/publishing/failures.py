"""What goes wrong with the Hub: tried again where it may pass, told in one line where it does not."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from traceback import walk_tb
from typing import TypeVar

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import _http, logging

from ddpm_hf.errors import UnreachableError, UserError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
TIMEOUT = 300  # seconds without a byte, after which a connection counts as broken; the client itself waits without end

Result = TypeVar("Result")


def patiently(action: Callable[[], Result], waits: Sequence[float], say: bool = False) -> Result:
    """Tries again where the connection or the server failed, which may pass."""
    for wait in waits:
        try:
            return action()
        except Exception as error:
            if not _may_pass(error):
                raise
            if say:
                print(f"{_what(error)}; trying again in {wait} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    return action()


def _cause(error: BaseException) -> BaseException:
    """What the client failed at; it wraps what happens in a transfer into a RuntimeError."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _of_storage(raised: BaseException) -> bool:
    """Whether it is of hf_xet, the client's storage protocol, whose errors are built-in ones; the system's have a number."""
    error, trace = _cause(raised), []
    for one in (raised, error):
        trace += [frame.f_code.co_name for frame, _ in walk_tb(one.__traceback__)]
    types = (RuntimeError, ConnectionError, TimeoutError, PermissionError)
    return isinstance(error, types) and getattr(error, "errno", None) is None and "_upload_xet_files" in trace


def _may_pass(raised: BaseException) -> bool:
    error = _cause(raised)
    if error is not raised and isinstance(error, AttributeError):
        return True  # where one transfer fails to connect, the client closes what the others are about to use
    if isinstance(error, HfHubHTTPError):
        # 412: the branch has moved on since it was looked at
        return _status(error) in (408, 412, 429) or _status(error) >= 500
    if _of_storage(raised):
        return "HTTP status client error" not in str(error)
    # an answer that is no JSON comes from something in between
    return isinstance(error, (HTTPError, json.JSONDecodeError))


def _status(error: HfHubHTTPError) -> int:
    return error.response.status_code


def _what(error: BaseException) -> str:
    error, server = _cause(error), constants.ENDPOINT
    if isinstance(error, HfHubHTTPError):
        return f"{server} answered {_status(error)}"
    if isinstance(error, json.JSONDecodeError):
        return f"what answered at {server} is not the Hub"
    connected = type(error).__name__ in (
        "ReadError",
        "WriteError",
        "RemoteProtocolError",
        "ReadTimeout",
        "WriteTimeout",
        "AttributeError",
    )
    return f"the connection to {server} broke" if connected else f"{server} cannot be reached ({first_line(error)})"


@contextmanager
def one_line(before: str, after: str) -> Iterator[None]:
    """Turns what the client raises into a `UserError`, told between these two."""
    try:
        yield
    except Exception as raised:
        error = _cause(raised)
        if _may_pass(raised):
            raise UnreachableError(f"{before}{_what(raised)}; try again later{after}") from None
        if isinstance(error, HfHubHTTPError):
            raise UserError(f"{before}{_refused(error)}{after}") from None
        if _of_storage(raised):
            raise UserError(f"{before}{constants.ENDPOINT} refuses the upload: {first_line(error)}{after}") from None
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise UserError(f"{before}{error.filename} cannot be read: {error.strerror}{after}") from None
        if isinstance(error, ValueError) and "README.md" in str(error):
            told = " ".join(line.strip("- ") for line in str(error).splitlines())
            raise UserError(f"{before}{told}{after}") from None
        raise


def _refused(error: HfHubHTTPError) -> str:
    server, told = constants.ENDPOINT, unsigned((error.server_message or first_line(error)).splitlines()[0])
    if _status(error) == 401:
        token = "in HF_TOKEN" if os.environ.get("HF_TOKEN") else "stored by `hf auth login`"
        return f"{server} refuses the token {token}; make one that may write at {server}/settings/tokens, and {LOGIN} to it"
    if _status(error) == 403:
        return f"{server} refuses to be written to with this token ({told}); {LOGIN} to one that may"
    return f"{server} refuses the upload, with {_status(error)}: {told}"


def first_line(error: BaseException) -> str:
    return unsigned((str(error).strip() or type(error).__name__).splitlines()[0])


def unsigned(text: str) -> str:
    """Without what follows the path of an address: it may be signed, and is nobody's business."""
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)


@contextmanager
def quiet() -> Iterator[None]:
    """The client would log each try with its address, which is long, and signed."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def in_time() -> Iterator[None]:
    """The client's connections, with an end to their waiting."""
    before = _http._GLOBAL_CLIENT_FACTORY

    def client() -> object:
        made = before()
        made.timeout = TIMEOUT
        return made

    set_client_factory(client)
    try:
        yield
    finally:
        set_client_factory(before)
