"""A folder as one commit on the Hub."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import disable_progress_bars, logging, validate_repo_id

from ddpm_hf.errors import UnreachableError, UserError

WAITS = (1, 5, 20)  # seconds before each new try; within one, the client tries every transfer six times by itself
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"

XET_ERRORS = (RuntimeError, ConnectionError, TimeoutError, PermissionError)  # of hf_xet, the client's storage protocol

Result = TypeVar("Result")


def check_destination(repo_id: str, revision: str | None, option: str = "--push") -> None:
    """Asks the Hub whether this machine's token may write to `repo_id`, before the expensive part.

    Raises `UserError` with one line where it may not, where the id or the branch is malformed (of `option`), or where the Hub
    cannot be asked.
    """
    owner = _check_id(repo_id, option)
    if revision is not None and (
        revision.startswith(("/", "-")) or ".." in revision or any(map(str.isspace, revision))
    ):
        raise UserError(f"{option} {repo_id}: {revision!r} cannot be the name of a branch; trial-2 can")
    api, told = HfApi(), (f"{option} {repo_id}: ", "")
    _check_access(*told)
    with _quiet(), _one_line(*told):
        user = _patiently(api.whoami, WAITS[:1])
        if _role(user) == "read":
            raise UserError(
                f"{option}: {user['name']}'s token may only read; make one that may write at"
                f" {constants.ENDPOINT}/settings/tokens, and {LOGIN}"
            )
        owners = [user["name"], *(org["name"] for org in user.get("orgs") or [])]
        if owner.lower() in map(str.lower, owners):
            return
        try:  # others may have been let in
            _patiently(lambda: api.auth_check(repo_id, write=True), WAITS[:1])
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403, 404):
                raise
            raise UserError(
                f"{option}: {user['name']} may not write to {repo_id}; an id's owner can be {' or '.join(owners)}"
            ) from None


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    revision: str | None,
    repo_type: str = "model",
    message: str,
    progress: bool = True,
) -> str:
    """Makes the repository (`"model"`, or `"space"` for Gradio) and the branch if they are missing, and commits the folder's
    files together; gives the commit's URL.

    In folders that it has, and among the .py files at the top, what the repository has and `folder` does not is deleted in
    the same commit. What went up before a failure is not sent again. Raises `UserError` with one line; the folder stays.
    """
    folder = Path(folder)
    _check_id(repo_id, "--push")
    told = (f"{repo_id}: ", f"; {folder} stays as it is")
    _check_access(*told)
    with _quiet(), nullcontext() if progress else disable_progress_bars(), _one_line(*told):
        return _patiently(lambda: _upload(folder, repo_id, private, revision, repo_type, message), WAITS, say=progress)


def _upload(folder: Path, repo_id: str, private: bool, revision: str | None, repo_type: str, message: str) -> str:
    """One try, from the beginning: the operations of a failed one may already have been carried out."""
    api, where = HfApi(), {"repo_id": repo_id, "repo_type": repo_type}
    sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
    # None leaves it to the organization's own rule
    api.create_repo(**where, private=True if private else None, exist_ok=True, **sdk)
    if private and not api.repo_info(**where).private:
        raise UserError(
            f"{repo_id} exists and is public, so that nothing was pushed to it; make it private in its settings, or push"
            " without --private"
        )
    if revision not in (None, constants.DEFAULT_REVISION):
        api.create_branch(**where, branch=revision, exist_ok=True)
    local = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    there = api.list_repo_files(**where, revision=revision)
    operations = [CommitOperationDelete(name, is_folder=False) for name in _stale(there, set(local))]
    operations += [CommitOperationAdd(name, file) for name, file in local.items()]
    # not upload_folder, which may split a commit that fails and leave half of it
    return api.create_commit(**where, operations=operations, commit_message=message, revision=revision).commit_url


def _stale(there: list[str], local: set[str]) -> list[str]:
    """What an earlier push left behind; never what somebody may have added by hand, such as a LICENSE."""
    folders = {name.partition("/")[0] for name in local if "/" in name}
    return [
        name
        for name in there
        if name not in local and (name.partition("/")[0] in folders if "/" in name else name.endswith(".py"))
    ]


def _check_id(repo_id: str, option: str) -> str:
    """The owner that a well-formed id names."""
    owner, slash, name = repo_id.partition("/")
    if not (owner and slash and name):
        raise UserError(f"{option}: {repo_id!r} should be OWNER/NAME, such as you/digits")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{option}: {_first_line(error)}") from None
    return owner


def _check_access(before: str, after: str) -> None:
    """What can be known without asking."""
    if is_offline_mode():
        raise UserError(f"{before}HF_HUB_OFFLINE is set, which forbids to reach {constants.ENDPOINT}; unset it{after}")
    if get_token() is None:
        raise UserError(f"{before}there is no token for {constants.ENDPOINT}; {LOGIN} to one that may write{after}")


def _role(user: dict) -> str | None:
    return ((user.get("auth") or {}).get("accessToken") or {}).get("role")


# ---- what goes wrong


def _patiently(action: Callable[[], Result], waits: Sequence[float], say: bool = False) -> Result:
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


def _may_pass(raised: BaseException) -> bool:
    error = _cause(raised)
    if error is not raised and isinstance(error, AttributeError):
        return True  # where one transfer fails to connect, the client closes what the others are about to use
    if isinstance(error, HfHubHTTPError):
        return _status(error) in (408, 429) or _status(error) >= 500
    if isinstance(error, XET_ERRORS):
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
        "AttributeError",
    )
    return f"the connection to {server} broke" if connected else f"{server} cannot be reached ({_first_line(error)})"


@contextmanager
def _one_line(before: str, after: str) -> Iterator[None]:
    """Turns what the client raises into a `UserError`, told between these two."""
    try:
        yield
    except Exception as raised:
        error = _cause(raised)
        if _may_pass(raised):
            raise UnreachableError(f"{before}{_what(raised)}; try again later{after}") from None
        if isinstance(error, HfHubHTTPError):
            raise UserError(f"{before}{_refused(error)}{after}") from None
        if isinstance(error, XET_ERRORS):
            raise UserError(f"{before}{constants.ENDPOINT} refuses the upload: {_first_line(error)}{after}") from None
        if isinstance(error, ValueError) and "README.md" in str(error):
            told = " ".join(line.strip("- ") for line in str(error).splitlines())
            raise UserError(f"{before}{told}{after}") from None
        raise


def _refused(error: HfHubHTTPError) -> str:
    server, told = constants.ENDPOINT, (error.server_message or _first_line(error)).splitlines()[0]
    if _status(error) == 401:
        token = "in HF_TOKEN" if os.environ.get("HF_TOKEN") else "stored by `hf auth login`"
        return f"{server} refuses the token {token}; make one that may write at {server}/settings/tokens, and {LOGIN} to it"
    if _status(error) == 403:
        return f"{server} refuses to be written to with this token ({told}); {LOGIN} to one that may"
    return f"{server} refuses the upload, with {_status(error)}: {told}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """The client would log each try with its address, which is long, and signed."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
