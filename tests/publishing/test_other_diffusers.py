"""Published folders in environments that have Diffusers, the oldest and the newest supported, and not this package."""

import re
import subprocess

import pytest

from ddpm_hf.publishing.card import Card
from ddpm_hf.publishing.check import Job, code_of, difference, run_elsewhere
from ddpm_hf.publishing.folder import build
from ddpm_hf.publishing.run import read_run
from ddpm_hf.publishing.snippets import drawn_by_run, snippets, variant_snippet
from tests.conftest import ROOT
from tests.publishing.environments import environment

pytestmark = pytest.mark.slow

ABOUT = "import diffusers; print(diffusers.__version__, diffusers.__file__)"


def oldest() -> str:
    return re.search(r"^    diffusers>=([\d.]+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)[1]


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_every_kind_draws_there_what_its_run_draws(which, trained, tmp_path):
    python = environment(tmp_path / "there", f"diffusers=={oldest()}" if which == "oldest" else "diffusers")
    version, place = subprocess.run(
        [python, "-I", "-c", ABOUT], capture_output=True, text=True, check=True
    ).stdout.split()
    assert place.startswith(str(tmp_path / "there"))
    assert (
        version == oldest()
        if which == "oldest"
        else tuple(map(int, version.split("."))) >= tuple(map(int, oldest().split(".")))
    )
    missing = subprocess.run([python, "-I", "-c", "import ddpm_hf"], capture_output=True, text=True)
    assert "No module named 'ddpm_hf'" in missing.stderr

    jobs, expected = [], []
    for kind, run_folder in trained[0].items():
        run, called, folder = read_run(run_folder), f"someone/{kind}", tmp_path / kind
        found = snippets(run, called)
        build(folder, run, Card(run, found, ["fp16"]), ["fp16"])
        ours = drawn_by_run(run, found, lambda images: None)
        jobs.append(Job(folder, called, code_of((folder / "README.md").read_text())))
        expected.append(ours)
        jobs.append(Job(folder, called, variant_snippet(run, called, "fp16").code))
        expected.append({})
    for job, drawn, ours in zip(jobs, run_elsewhere(jobs, python), expected, strict=True):
        assert difference(drawn, ours) is None, (job.called, version)
        assert ours or drawn["fp16.png"].std() > 0
    print(f"diffusers {version} draws the same as here")
