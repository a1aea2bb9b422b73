"""A folder as one commit on the Hub."""

import hashlib
from contextlib import nullcontext
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    get_token,
    hf_hub_url,
    is_offline_mode,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    hf_raise_for_status,
    validate_repo_id,
)

from ddpm_hf.config.checks import REPO_ID
from ddpm_hf.errors import UserError
from ddpm_hf.publishing.failures import LOGIN, first_line, in_time, one_line, patiently, quiet
from ddpm_hf.publishing.ownership import LIST, files_of, listed

WAITS = (1, 5, 20)  # seconds before each new try; within one, the client tries every transfer six times by itself


class EditedError(UserError):
    """Says that the repository's card or model is not what the last push wrote."""


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
    with quiet(), in_time(), one_line(*told):
        user = patiently(api.whoami, WAITS[:1])
        if _role(user) == "read":
            raise UserError(
                f"{option}: {user['name']}'s token may only read; make one that may write at"
                f" {constants.ENDPOINT}/settings/tokens, and {LOGIN}"
            )
        try:  # which knows all that there is to know of a repository that exists
            patiently(lambda: api.auth_check(repo_id, write=True), WAITS[:1])
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403, 404):
                raise
            if error.response.status_code == 403:
                raise UserError(
                    f"{option}: {user['name']}'s token may not write to {repo_id}; give it the right at"
                    f" {constants.ENDPOINT}/settings/tokens, or {LOGIN} to one that may"
                ) from None
        else:
            _check_theirs(repo_id, revision)
            return
        owners = _owners(user)
        if owner.lower() not in map(str.lower, owners):
            raise UserError(
                f"{option}: {user['name']} may not write to {repo_id}; an id's owner can be {' or '.join(owners)}"
            )
        if not _may_create(user, owner, repo_id):
            raise UserError(
                f"{option}: {user['name']}'s token is fine-grained, and has no right to write to repositories of {owner}; give"
                f" it that at {constants.ENDPOINT}/settings/tokens, or {LOGIN} to another"
            )


def _owners(user: dict) -> list[str]:
    """Under whose names the user may make repositories."""
    orgs = [org["name"] for org in user.get("orgs") or [] if org.get("roleInOrg") != "read"]
    return [user["name"], *orgs]


def _may_create(user: dict, owner: str, repo_id: str) -> bool:
    """False where a fine-grained token says that it lacks the right; True also where it says nothing of it."""
    scoped = ((_token(user).get("fineGrained") or {}).get("scoped")) if _role(user) == "fineGrained" else None
    if scoped is None:
        return True
    names = {owner.lower(), repo_id.lower()}
    return any(
        "repo.write" in (scope.get("permissions") or ())
        and str((scope.get("entity") or {}).get("name")).lower() in names
        for scope in scoped
    )


def upload(
    folder: Path, repo_id: str, *, private: bool, revision: str | None, message: str, progress: bool = True
) -> str:
    """Makes the repository and the branch if they are missing, and commits the folder's files together; gives the commit's
    URL.

    What the repository's publication.json names, and `folder` no longer has, is deleted in the same commit, and nothing else.
    What went up before a failure is not sent again. Raises `UserError` with one line, also where the Hub has another card or
    model than the last push wrote; the folder stays.
    """
    folder = Path(folder)
    _check_id(repo_id, "--push")
    told = (f"{repo_id}: ", f"; {folder} stays as it is")
    _check_access(*told)
    with quiet(), in_time(), nullcontext() if progress else disable_progress_bars(), one_line(*told):
        return patiently(lambda: _upload(folder, repo_id, private, revision, message), WAITS, say=progress)


def _upload(folder: Path, repo_id: str, private: bool, revision: str | None, message: str) -> str:
    """One try, from the beginning, since a try that failed may have come as far as the commit, whose answer was lost."""
    api = HfApi()
    # None leaves it to the organization's own rule
    api.create_repo(repo_id, private=True if private else None, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise UserError(
            f"{repo_id} exists and is public, so that nothing was pushed to it; make it private in its settings, or push"
            " without --private"
        )
    if revision not in (None, constants.DEFAULT_REVISION):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    local = {name: folder / name for name in files_of(folder)}
    head = api.repo_info(repo_id, revision=revision).sha
    earlier = _check_theirs(repo_id, head)
    there = set(api.list_repo_files(repo_id, revision=head))
    gone = [name for name in sorted(there.intersection(earlier)) if name not in local]
    operations = [CommitOperationDelete(name, is_folder=False) for name in gone]
    operations += [CommitOperationAdd(name, file) for name, file in local.items()]
    # not upload_folder, which may split a commit that fails and leave half of it; on what was looked at, and nothing newer
    commit = api.create_commit(
        repo_id, operations=operations, commit_message=message, revision=revision, parent_commit=head
    )
    return commit.commit_url


def _check_theirs(repo_id: str, revision: str | None) -> dict[str, str]:
    """The SHA-256 of what an earlier push wrote, by name. Raises `EditedError` where the repository's card is not as it wrote
    it, or where the card or the model is none of a push."""
    written = listed(_read(repo_id, revision, LIST) or b"") or {}
    for name in ("README.md", "model_index.json"):
        found = _read(repo_id, revision, name)
        if found is not None and hashlib.sha256(found).hexdigest() != written.get(name):
            how = "was edited on the Hub" if name in written else "is none that ddpm-hf publish wrote"
            raise EditedError(
                f"{repo_id}: its {name} {how}, so that nothing was pushed; keep what you need of it, delete it there, and push"
                " again"
            )
    return written


def _read(repo_id: str, revision: str | None, name: str) -> bytes | None:
    """A small file of a repository; None where it, or the branch, is not there."""
    url = hf_hub_url(repo_id, name, revision=revision)
    response = get_session().get(url, headers=build_hf_headers())
    if response.status_code == 404:
        return None
    hf_raise_for_status(response)
    return response.content


def _check_id(repo_id: str, option: str) -> str:
    """The owner that a well-formed id names."""
    if not REPO_ID.fullmatch(repo_id):
        raise UserError(f"{option}: {repo_id!r} should be OWNER/NAME, such as you/digits")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{option}: {first_line(error)}") from None
    return repo_id.partition("/")[0]


def _check_access(before: str, after: str) -> None:
    """What can be known without asking."""
    if is_offline_mode():
        raise UserError(f"{before}HF_HUB_OFFLINE is set, which forbids to reach {constants.ENDPOINT}; unset it{after}")
    if get_token() is None:
        raise UserError(f"{before}there is no token for {constants.ENDPOINT}; {LOGIN} to one that may write{after}")


def _role(user: dict) -> str | None:
    return _token(user).get("role")


def _token(user: dict) -> dict:
    return (user.get("auth") or {}).get("accessToken") or {}
