"""The package as a wheel, installed where this checkout is not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT
from tests.publishing.environments import environment

pytestmark = pytest.mark.slow

ABOUT = "import ddpm_hf.app, train_unconditional as t; print(ddpm_hf.__file__, ddpm_hf.app.__file__, t.__file__)"


def run(*command, **options):
    shown = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the environment's commands."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    run("git", "checkout-index", "--all", f"--prefix={source}/", cwd=ROOT)  # building leaves files in it
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", root, source)
    (wheel,) = root.glob("*.whl")
    return Path(environment(root / "there", str(wheel))).parent


def test_the_wheel_has_all_it_needs(installed, trained, tmp_path):
    elsewhere = {"cwd": tmp_path, "env": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}}
    for place in run(installed / "python", "-c", ABOUT, **elsewhere).split():
        assert Path(place).is_relative_to(installed.parent)
    store = tmp_path / "prepared"
    said = run(installed / "ddpm-hf", "prepare", "quickstart", "--data.store", store, **elsewhere)
    assert f"1,797 images in {store}" in said
    out = tmp_path / "hub"
    run(installed / "ddpm-hf", "publish", trained[0]["custom"], "--out", out, "--space", **elsewhere)
    assert (out / "unet" / "peng.py").is_file()
    assert (tmp_path / "hub-space" / "ddpm_hf" / "app" / "style.css").is_file()
    assert (tmp_path / "hub-space" / "ddpm_hf" / "configs" / "quickstart.yaml").is_file()


def test_its_demo_draws(installed, trained, tmp_path):
    elsewhere = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [installed / "ddpm-hf", "demo", trained[0]["custom"]]
    demo = subprocess.Popen(list(map(str, command)), cwd=tmp_path, env=elsewhere, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+", demo.stdout.readline())[0]
        name = Path(trained[0]["custom"]).name
        data = [2, 0, name, None, "ddim", 2, 1, 0, None]
        event = httpx.post(f"{url}gradio_api/call/draw", json={"data": data}).raise_for_status().json()["event_id"]
        answer = httpx.get(f"{url}gradio_api/call/draw/{event}", timeout=120).text
        assert "event: complete" in answer
        assert "000001.png" in answer
    finally:
        demo.terminate()
        assert demo.wait(60) == 0
        demo.stdout.close()
