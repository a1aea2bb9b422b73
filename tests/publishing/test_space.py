"""A Space's folder runs as it is, with nothing but what is in it and what it requires."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from ddpm_hf.errors import UserError
from ddpm_hf.publishing.space import write_space
from tests.app.conftest import write_model


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    root = tmp_path_factory.mktemp("space")
    return write_space(root / "space", [write_model(root / "some run" / "hub", 3), write_model(root / "plain")])


def test_what_is_in_it(space):
    _, metadata, text = (space / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(metadata)
    assert metadata["sdk"] == "gradio"
    assert (space / metadata["app_file"]).is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["sdk_version"])
    assert "python app.py" in text
    for line in (space / "requirements.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z-]+==[\d.]+", line)
    assert (space / "models.txt").read_text() == "models/some-run\nmodels/plain\n"
    assert (space / "models" / "some-run" / "model_index.json").is_file()
    assert (space / "ddpm_hf" / "app" / "style.css").is_file()
    assert not list(space.rglob("__pycache__"))


def test_again_is_the_same(space, tmp_path):
    folder = write_space(tmp_path / "space", ["google/ddpm-cifar10-32"])
    (folder / "models").mkdir()
    write_space(folder, ["google/ddpm-cifar10-32"])
    assert (folder / "models.txt").read_text() == "google/ddpm-cifar10-32\n"
    assert not (folder / "models").exists()
    assert "models:\n- google/ddpm-cifar10-32\n" in (folder / "README.md").read_text()


def test_a_space_that_was_edited_is_left_alone(tmp_path):
    folder = write_space(tmp_path / "space", ["google/ddpm-cifar10-32"])
    (folder / "ddpm_hf" / "__pycache__").mkdir()  # it was run here
    (folder / "ddpm_hf" / "__pycache__" / "build.pyc").write_text("")
    write_space(folder, ["google/ddpm-cifar10-32"])
    assert not (folder / "ddpm_hf" / "__pycache__").exists()
    assert "the secret `HF_TOKEN` in the Space's settings" in (folder / "README.md").read_text()
    for name, content in (("app.py", "mine"), (".gitignore", "mine")):
        write_space(tmp_path / "other", ["google/ddpm-cifar10-32"])
        (tmp_path / "other" / name).write_text(content)
        with pytest.raises(UserError, match=f"{name} in it is not as ddpm-hf publish wrote it; move it"):
            write_space(tmp_path / "other", ["google/ddpm-cifar10-32"])
        (tmp_path / "other").rename(tmp_path / f"moved {name}")
    assert {path.name for path in tmp_path.iterdir()} == {"space", "moved app.py", "moved .gitignore"}


def test_models_of_nearly_the_same_name(tmp_path):
    """Each has a folder of its own, and one that is named twice has one."""
    folders = [write_model(tmp_path / name, seed=i) for i, name in enumerate(("a b", "a-b", "A-B", "数字"))]
    folder = write_space(tmp_path / "space", [*folders, folders[0]])
    lines = (folder / "models.txt").read_text().splitlines()
    assert lines == ["models/a-b", "models/a-b-2", "models/A-B-3", "models/model"]
    weights = {next((folder / line / "unet").glob("*.safetensors")).read_bytes() for line in lines}
    assert len(weights) == 4


def test_no_such_model(tmp_path):
    with pytest.raises(UserError, match="no folder with a pipeline"):
        write_space(tmp_path / "space", ["runs/none/such"])
    assert not (tmp_path / "space").exists()


@pytest.mark.slow
def test_it_runs_from_anywhere(space, tmp_path):
    """In a process that finds ddpm_hf in that folder alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # no .pth file, and so no editable ddpm_hf: what is installed is on the path by name
    paths = [path for path in sys.path if path.endswith("site-packages")]
    keep = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)}
    environment = keep | {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": os.pathsep.join(paths)}
    where = "import ddpm_hf, ddpm_hf.app; print(ddpm_hf.__file__, ddpm_hf.app.__file__)"
    check = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(space)!r}); {where}"]
    for found in subprocess.run(check, env=environment, capture_output=True, text=True, check=True).stdout.split():
        assert Path(found).is_relative_to(space)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-S", space / "app.py"], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
        try:
            config = None
            for _ in range(600):
                assert process.poll() is None, (tmp_path / "log").read_text()
                try:
                    config = httpx.get(f"http://127.0.0.1:{port}/config", timeout=10).json()
                    break
                except httpx.TransportError:
                    time.sleep(0.5)
            assert config["title"] == "Draw with diffusion models"
            data = {"data": [1, 0, "some-run", "0", "ddim", 2, 2, 0, None]}
            event = httpx.post(f"http://127.0.0.1:{port}/gradio_api/call/draw", json=data, timeout=60).json()[
                "event_id"
            ]
            answer = httpx.get(f"http://127.0.0.1:{port}/gradio_api/call/draw/{event}", timeout=120).text
            assert "event: complete" in answer
            assert "000000.png" in answer
        finally:
            process.terminate()
            process.wait(60)
    assert "Traceback" not in (tmp_path / "log").read_text()
