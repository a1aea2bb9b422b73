"""The package as a wheel, installed where this checkout is not."""

import os
import subprocess
import sys
from pathlib import Path

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
    assert "--max_images" in run(installed / "ddpm-hf", "demo", "--help", **elsewhere)
    store = tmp_path / "prepared"
    said = run(installed / "ddpm-hf", "prepare", "quickstart", "--data.store", store, **elsewhere)
    assert f"1,797 images in {store}" in said
    out = tmp_path / "hub"
    run(installed / "ddpm-hf", "publish", trained[0]["custom"], "--out", out, "--space", **elsewhere)
    assert (out / "unet" / "peng.py").is_file()
    assert (tmp_path / "hub-space" / "ddpm_hf" / "app" / "style.css").is_file()
    assert (tmp_path / "hub-space" / "ddpm_hf" / "configs" / "quickstart.yaml").is_file()
