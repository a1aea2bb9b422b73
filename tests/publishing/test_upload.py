"""Folders pushed to a stand-in for the Hub, and what is told where that fails."""

import base64
import hashlib
import os

import pytest
from huggingface_hub import get_session

from ddpm_hf.errors import UnreachableError, UserError
from ddpm_hf.publishing import failures
from ddpm_hf.publishing import upload as uploading
from ddpm_hf.publishing.failures import first_line, one_line
from ddpm_hf.publishing.ownership import write_list
from ddpm_hf.publishing.upload import check_destination, upload
from tests.publishing.hub_repos import Blob
from tests.publishing.hub_server import FINE, FINE_READER, READER, STRANGER

CARD = "---\nlicense: mit\n---\n# A model\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(uploading, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's own tries


@pytest.fixture
def folder(tmp_path):
    """Two large files, and small ones."""
    return write(
        tmp_path / "hub",
        {
            "README.md": CARD.encode(),
            "model_index.json": b"{}",
            "unet/a.safetensors": os.urandom(300_000),
            "vae/b.safetensors": os.urandom(200_000),
            "vae/coder.py": b"pass\n",
            "pipeline.py": b"pass\n",
        },
    )


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def push(folder, repo_id="ada/digits", **options):
    write_list(folder)
    return upload(folder, repo_id, **{"private": False, "revision": None, "message": "digits, step 8", **options})


def told(action, *arguments, **options):
    with pytest.raises(UserError) as error:
        action(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_arrives_whole_in_one_commit(hub, folder):
    url = push(folder)
    assert hub.files("ada/digits") == contents(folder)
    assert hub.messages("ada/digits") == ["digits, step 8"]
    repo = hub.repos["models", "ada/digits"]
    assert url == f"{hub.url}/ada/digits/commit/{repo.branches['main'][-1].oid}"
    assert not repo.private
    large = {name for name, blob in repo.branches["main"][-1].files.items() if blob.lfs}
    assert large == {"unet/a.safetensors", "vae/b.safetensors"}


def test_nothing_new_makes_no_commit(hub, folder):
    first = push(folder)
    assert push(folder) == first
    assert len(hub.messages("ada/digits")) == 1


def test_private_and_a_branch_are_made_as_asked(hub, folder):
    push(folder, "ada-lab/secret", private=True, revision="trial/2")
    assert hub.repos["models", "ada-lab/secret"].private
    assert hub.files("ada-lab/secret", "trial/2") == contents(folder)
    assert hub.files("ada-lab/secret", "main") == {}
    push(folder, "ada-lab/secret", private=True, revision="trial/2", message="again")  # both exist
    push(folder, "ada-lab/secret", private=True)
    assert hub.files("ada-lab/secret", "main") == contents(folder)


def test_what_is_private_is_never_pushed_to_a_public_repository(hub, folder):
    push(folder)
    (folder / "secret.txt").write_text("secret")
    assert "ada/digits exists and is public, so that nothing was pushed" in told(push, folder, private=True)
    assert "secret.txt" not in hub.files("ada/digits")


def add_by_hand(hub, **files):
    last = hub.repos["models", "ada/digits"].branches["main"][-1]
    last.files.update({name: Blob(content) for name, content in files.items()})


def test_what_an_earlier_push_wrote_goes_in_the_same_commit_and_nothing_else(hub, folder):
    (folder / "quality.png").write_bytes(b"a picture")
    push(folder)
    by_hand = {"LICENSE": b"mine", "handler.py": b"pass", "unet/notes.txt": b"mine"}
    add_by_hand(hub, **by_hand)
    for name in ("pipeline.py", "quality.png", "vae/coder.py", "vae/b.safetensors"):
        (folder / name).unlink()
    (folder / "vae").rmdir()
    push(folder, message="second")
    assert hub.messages("ada/digits") == ["digits, step 8", "second"]
    assert hub.files("ada/digits") == contents(folder) | by_hand


@pytest.mark.parametrize("name", ["README.md", "model_index.json"])
def test_what_no_push_wrote_is_kept(hub, folder, name):
    """A repository made on the Hub's page with a card of its own, or the id of another model by mistake."""
    push(folder / "unet")  # a repository without a card
    add_by_hand(hub, **{name: b"mine", "LICENSE": b"mine"})
    expected = (
        f"ada/digits: its {name} is none that ddpm-hf publish wrote, so that nothing was pushed; keep what you need"
    )
    assert told(check_destination, "ada/digits", None).startswith(expected)
    assert told(push, folder).startswith(expected)
    assert hub.files("ada/digits")[name] == b"mine"
    assert len(hub.messages("ada/digits")) == 1


def test_a_card_that_is_edited_during_the_upload_is_kept(hub, folder):
    push(folder)
    (folder / "README.md").write_text(CARD + "A newer one.\n")
    (folder / "unet" / "a.safetensors").write_bytes(os.urandom(1000))
    change = {"path": "README.md", "content": base64.b64encode(b"Found nowhere else.").decode()}
    lines = [{"key": "header", "value": {"summary": "by hand"}}, {"key": "file", "value": change}]

    def edited():
        repo = hub.repos["models", "ada/digits"]
        return len(hub.messages("ada/digits")) > 1 or repo.add_commit("main", lines)

    hub.hold("PUT /storage", edited)
    assert "its README.md was edited on the Hub, so that nothing was pushed" in told(push, folder)
    assert hub.files("ada/digits")["README.md"] == b"Found nowhere else."
    assert hub.messages("ada/digits") == ["digits, step 8", "by hand"]


def test_a_card_that_was_edited_on_the_hub_is_kept(hub, folder):
    push(folder)
    push(folder)  # which the list itself does not hinder
    edited = CARD.encode() + b"Found nowhere else.\n"
    add_by_hand(hub, **{"README.md": edited})
    (folder / "README.md").write_text(CARD + "A newer one.\n")
    write_list(folder)
    expected = (
        "ada/digits: its README.md was edited on the Hub, so that nothing was pushed; keep what you need of it, delete it"
        " there, and push again"
    )
    assert told(check_destination, "ada/digits", None) == expected  # before the expensive part
    assert told(push, folder) == expected
    assert hub.files("ada/digits")["README.md"] == edited
    check_destination("ada/digits", "trial")  # another branch, which is not there
    del hub.repos["models", "ada/digits"].branches["main"][-1].files["README.md"]
    check_destination("ada/digits", None)
    push(folder)
    assert hub.files("ada/digits") == contents(folder)


@pytest.mark.parametrize("chunk_size", [None, 70_000])
def test_a_cut_connection_is_tried_again(chunk_size, hub, folder):
    hub.chunk_size = chunk_size
    hub.cut("PUT /storage", after=10_000)
    push(folder)
    assert hub.files("ada/digits") == contents(folder)
    assert hub.count("PUT /storage") == (3 if chunk_size is None else 5 + 3 + 1)
    assert len(hub.messages("ada/digits")) == 1


def test_a_repeat_sends_only_what_is_missing(hub, folder):
    large = contents(folder)["vae/b.safetensors"]
    oid = hashlib.sha256(large).hexdigest()
    hub.cut(f"PUT .*{oid}", after=150_000, times=1000)
    error = told(push, folder)
    assert error == f"ada/digits: the connection to {hub.url} broke; try again later; {folder} stays as it is"
    assert hub.files("ada/digits") == {}  # nothing half-published
    hub.faults.clear()
    hub.requests.clear()
    push(folder)
    assert hub.received("PUT /storage") == len(large)
    assert hub.files("ada/digits") == contents(folder)


@pytest.mark.parametrize("request_", ["create", "validate-yaml", "tree/", "preupload", "batch", "verify", "commit"])
def test_a_server_that_stumbles_is_asked_again(request_, hub, folder):
    hub.fail(request_, 503)
    push(folder)
    assert hub.files("ada/digits") == contents(folder)
    assert len(hub.messages("ada/digits")) == 1


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, folder, capsys):
    hub.lose_answer("POST .*/commit/")
    push(folder)
    assert hub.messages("ada/digits") == ["digits, step 8"]
    assert hub.received("PUT /storage") == 500_000
    assert f"the connection to {hub.url} broke; trying again in 0.01 s" in capsys.readouterr().err


def test_transfers_that_lose_their_client_are_tried_again(hub, folder, monkeypatch):
    """As `get_session` gives None to one thread while another closes it, having failed to connect."""
    from huggingface_hub.utils import _http

    real, calls = _http.get_session, []

    def get_session():
        calls.append(hub.count("batch"))  # transfers come after it
        return None if calls.count(1) == 1 and calls[-1] == 1 else real()

    monkeypatch.setattr(_http, "get_session", get_session)
    push(folder)
    assert hub.count("batch") == 2
    assert hub.files("ada/digits") == contents(folder)


def test_a_server_that_stays_down_is_told(hub, folder):
    hub.fail("commit", 500, times=1000)
    assert told(push, folder) == f"ada/digits: {hub.url} answered 500; try again later; {folder} stays as it is"
    hub.stop()
    assert told(push, folder).startswith(f"ada/digits: {hub.url} cannot be reached (")
    assert told(check_destination, "ada/digits", None).startswith(f"--push ada/digits: {hub.url} cannot be reached (")


def test_a_card_that_the_hub_refuses_is_told(hub, folder):
    (folder / "README.md").write_text("---\n- a: [\n---\n")
    assert "ada/digits: Invalid metadata in README.md. YAML: not a mapping; " in told(push, folder)
    assert hub.files("ada/digits") == {}


def test_who_may_write_may_push(hub):
    for repo_id in ("ada/digits", "Ada/digits", "ada-lab/digits"):
        check_destination(repo_id, "trial-2")
    assert not hub.repos  # only asked


def test_who_was_let_in_may_push(hub, folder, monkeypatch):
    push(folder, "ada/digits")
    monkeypatch.setattr("tests.publishing.hub_server._Handler._may_write", lambda *_: None)
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    check_destination("ada/digits", None)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, "there is no token for {url}; log in with `hf auth login`, or set HF_TOKEN to one that may write"),
        ("hf_old", "{url} refuses the token in HF_TOKEN; make one that may write at {url}/settings/tokens, and log in"),
        (READER, "ada's token may only read; make one that may write at {url}/settings/tokens"),
        (STRANGER, "bob may not write to ada/digits; an id's owner can be bob or bob-lab"),
    ],
)
def test_a_refused_token_is_told_before_and_after(token, expected, hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert expected.format(url=hub.url) in told(check_destination, "ada/digits", None)
    error = told(push, folder)
    assert "HF_TOKEN" in error
    assert error.endswith(f"; {folder} stays as it is")
    assert contents(folder)
    assert not hub.repos


def test_what_a_fine_grained_token_may_do_is_asked(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", FINE)
    check_destination("ada/digits", None)
    assert "ada's token is fine-grained, and has no right to write to repositories of ada-lab" in told(
        check_destination, "ada-lab/digits", None
    )
    push(folder)
    check_destination("ada/digits", None)
    monkeypatch.setenv("HF_TOKEN", FINE_READER)
    assert "ada's token may not write to ada/digits; give it the right at" in told(
        check_destination, "ada/digits", None
    )
    assert "has no right to write to repositories of ada; give it that" in told(check_destination, "ada/new", None)


def test_who_may_only_read_in_an_organization_may_not_push_there(hub):
    hub.orgs["lab"] = "read"
    assert "ada may not write to ada-lab/digits; an id's owner can be ada" in told(
        check_destination, "ada-lab/digits", None
    )
    hub.orgs["lab"] = "contributor"
    check_destination("ada-lab/digits", None)


def test_a_server_that_says_nothing_is_not_waited_for_without_end(hub, monkeypatch):
    hub.hold("whoami", until=lambda: False)
    monkeypatch.setattr(failures, "TIMEOUT", 0.05)
    with pytest.raises(
        UnreachableError, match=f"--push ada/digits: the connection to {hub.url} broke; try again later"
    ):
        check_destination("ada/digits", None)
    assert get_session().timeout.read is None  # the client's own again


def test_what_fails_on_this_machine_is_not_told_as_the_networks():
    with pytest.raises(RuntimeError, match="a bug"), one_line("", ""):
        raise RuntimeError("a bug")
    with (
        pytest.raises(UserError, match="x: unet/a cannot be read: Permission denied; y") as told,
        one_line("x: ", "; y"),
    ):
        try:
            raise PermissionError(13, "Permission denied", "unet/a")
        except PermissionError as cause:
            raise RuntimeError("Error while uploading 'unet/a' to the Hub.") from cause
    assert not isinstance(told.value, UnreachableError)


def test_errors_of_the_clients_storage_are_the_networks():
    def _upload_xet_files(error):  # by this name the client's own is known
        raise error

    for error in (RuntimeError("Data processing error: CAS service error"), ConnectionError("Network error")):
        with pytest.raises(UnreachableError), one_line("", ""):
            _upload_xet_files(error)
    with pytest.raises(UserError, match="refuses the upload: HTTP status client error"), one_line("", ""):
        _upload_xet_files(RuntimeError("HTTP status client error (403 Forbidden)"))
    with pytest.raises(UserError, match="cannot be read"), one_line("", ""):
        _upload_xet_files(PermissionError(13, "Permission denied", "unet/a"))


def test_no_message_has_a_signed_address():
    error = ValueError("Client error '403 Forbidden' for url 'https://s3.aws/a/b?X-Amz-Signature=secret&x=1' (x)\nmore")
    assert first_line(error) == "Client error '403 Forbidden' for url 'https://s3.aws/a/b' (x)"


def test_no_network_is_asked_for_where_it_is_forbidden(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = told(push, folder)
    assert (
        error
        == f"ada/digits: HF_HUB_OFFLINE is set, which forbids to reach {hub.url}; unset it; {folder} stays as it is"
    )
    assert "hub.repo_id ada/digits: HF_HUB_OFFLINE is set" in told(check_destination, "ada/digits", None, "hub.repo_id")
    assert not hub.requests


@pytest.mark.parametrize(
    "repo_id", ["digits", "/digits", "ada/", "a/b/c", "ada/dig its", "ada/-digits", "ada/x.git", ""]
)
def test_a_malformed_id_is_told_at_once(repo_id, hub, folder):
    assert told(check_destination, repo_id, None, "hub.repo_id").startswith("hub.repo_id: ")
    assert told(push, folder, repo_id).startswith("--push: ")
    assert not hub.requests


@pytest.mark.parametrize("revision", ["a b", "../main", "-x"])
def test_a_malformed_branch_is_told_at_once(revision, hub):
    assert f"{revision!r} cannot be the name of a branch" in told(check_destination, "ada/digits", revision)
    assert not hub.requests


def test_the_client_says_nothing_of_its_own(hub, folder, caplog, capsys):
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    hub.fail("PUT /storage", 503)
    push(folder)
    assert "storage" not in capsys.readouterr().err  # addresses there are signed
    assert logging.get_verbosity() == before
