import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.publishing.hub_server import WRITER, HubServer


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The run folders of `runs.KINDS`, which tests may add to but not change, and the folder above all they were made of."""
    from tests.publishing.runs import train_runs

    root = tmp_path_factory.mktemp("trained")
    return train_runs(root), root


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in for the Hub, for this process; others take it from `hub.environment(home)`."""
    with HubServer() as server:
        # the client read its environment when it was imported
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield server
    huggingface_hub.close_session()
