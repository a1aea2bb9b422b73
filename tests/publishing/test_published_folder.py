"""What a published folder holds, for each kind of model: pictures, card, recipe, records, and nothing of this machine."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from ddpm_hf.cli import main
from ddpm_hf.config import load_recipe
from ddpm_hf.errors import UserError
from ddpm_hf.loading import load_pipeline
from ddpm_hf.publishing import publish as publishing
from ddpm_hf.publishing.card import Card
from ddpm_hf.publishing.check import Job, code_of, difference, run_elsewhere
from ddpm_hf.publishing.folder import build
from ddpm_hf.publishing.ownership import check_place
from ddpm_hf.publishing.publish import publish
from ddpm_hf.publishing.run import read_run
from ddpm_hf.publishing.snippets import drawn_by_run, snippets
from ddpm_hf.sampling import Sampling, draw_images
from tests.publishing.runs import KINDS

CODE = {
    "stock": [],
    "custom": ["image_generation.py", "unet/peng.py"],
    "learned": ["image_generation.py"],
    "guided": ["image_generation.py"],
    "latent": ["image_generation.py"],
}


def make(run_folder, folder, called, **card):
    """A whole folder, not yet checked, and the run that it was made of."""
    run = read_run(run_folder)
    build(folder, run, Card(run, snippets(run, called), **card))
    return run


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """By kind, the folder and what the run knows."""
    root = tmp_path_factory.mktemp("published")
    return {kind: (root / kind, make(run, root / kind, f"someone/{kind}")) for kind, run in trained[0].items()}


def test_each_kind_draws_elsewhere_what_its_run_draws(published):
    jobs = [
        Job(folder, f"someone/{kind}", code_of((folder / "README.md").read_text()))
        for kind, (folder, _) in published.items()
    ]
    for (kind, (_, run)), drawn in zip(published.items(), run_elsewhere(jobs), strict=True):
        ours = drawn_by_run(run, snippets(run, f"someone/{kind}"), lambda images: None)
        assert (
            ours.keys()
            == drawn.keys()
            == {"image.png", *(["faster.png"] if kind in ("learned", "guided", "latent") else [])}
        )
        assert difference(drawn, ours) is None, kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_that_is_needed_and_no_other(published, kind):
    folder, _ = published[kind]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py")) == CODE[kind]
    card = (folder / "README.md").read_text()
    assert ("trust_remote_code=True" in code_of(card)) == bool(CODE[kind])
    assert all(f"[`{name}`]({name})" in card for name in CODE[kind])
    assert list(folder.rglob("*.bin")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_the_runs_own(published, trained, kind):
    folder, _ = published[kind]
    sampling = Sampling("ddim", 3)
    ours = draw_images(load_pipeline(str(trained[0][kind])), range(2), 2, sampling)
    np.testing.assert_array_equal(draw_images(load_pipeline(str(folder)), range(2), 2, sampling), ours)


def test_the_grid_is_the_recipes(published, trained):
    folder, _ = published["stock"]
    with (
        Image.open(folder / "samples.png") as ours,
        Image.open(next((trained[0]["stock"] / "samples").iterdir())) as theirs,
    ):
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1  # of the same step and settings


def _texts(folder: Path):
    for path in folder.rglob("*"):
        if path.suffix in (".md", ".yaml", ".json", ".py"):
            yield path, path.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_published_names_a_place_on_this_machine(published, trained, kind):
    folder, _ = published[kind]
    _, root = trained
    recipe = (trained[0][kind] / "recipe.yaml").read_text()
    assert str(root) in recipe  # it could have been
    found = list(_texts(folder))
    assert len(found) > 4
    for path, text in found:
        for place in (str(root), str(folder.parent), os.getcwd(), str(Path.home())):
            assert place not in text, path
        if path.suffix != ".py":
            assert not re.search(r"(?<![\w:/.)])/(home|root|tmp|usr|var|Users)\b", text), path


def test_the_recipe_can_be_read_and_says_what_it_left_out(published):
    for kind, (folder, _) in published.items():
        recipe = load_recipe(folder / "recipe.yaml")
        assert recipe.run.output_dir == "runs"
        assert recipe.data.store is None
        assert recipe.data.source == ("photos" if kind == "stock" else "digits")
    assert (
        "# Of places on the author's machine the last name is left: data.source\n"
        in (published["stock"][0] / "recipe.yaml").read_text()
    )
    assert load_recipe(published["latent"][0] / "recipe.yaml").autoencoder.source == "small"


def test_the_same_run_gives_the_same_bytes(published, trained, tmp_path):
    for kind in ("guided", "latent"):
        make(trained[0][kind], tmp_path / kind, f"someone/{kind}")
        names = sorted(path.relative_to(tmp_path / kind) for path in (tmp_path / kind).rglob("*") if path.is_file())
        first = published[kind][0]
        assert names == sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
        for name in names:
            assert (tmp_path / kind / name).read_bytes() == (first / name).read_bytes(), name


# ---- the card


@pytest.mark.parametrize("kind", KINDS)
def test_the_cards_metadata_is_what_the_hub_reads(published, kind):
    folder, _ = published[kind]
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    labelled = kind in ("guided", "latent")
    assert ("class-conditional" in data["tags"]) == labelled == ("unconditional" not in data["tags"])
    assert ("latent-diffusion" in data["tags"]) == (kind == "latent")
    assert "datasets" not in data  # of the Hub's, and none of these is
    assert "license" not in data
    text = (folder / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "diffusers"  # as the Hub's own parser takes it
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://") or (folder / link).exists(), link
    assert ("## Classes and guidance" in text) == labelled
    if labelled:
        assert "`w = s - 1`" in text
        assert "The null class has the id 10, the number of classes" in text


# ---- whose folder it is


def test_a_folder_of_somebody_else_is_left_alone(published, tmp_path):
    check_place(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty")
    folder, _ = published["stock"]
    check_place(folder)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        UserError,
        match=r"theirs: holds thesis.txt, which ddpm-hf publish did not write; move it, or choose another --out",
    ):
        check_place(tmp_path / "theirs")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="link: is no folder of ddpm-hf publish"):
        check_place(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is no folder of ddpm-hf publish"):
        check_place(tmp_path / "file")


@pytest.mark.parametrize("change", ["edited", "added"])
def test_a_published_folder_that_somebody_changed_is_left_alone(trained, tmp_path, change):
    folder = tmp_path / "hub"
    make(trained[0]["custom"], folder, "x")
    (folder / ".DS_Store").write_text("a desktop's")
    check_place(folder)
    if change == "edited":
        (folder / "README.md").write_text((folder / "README.md").read_text() + "\nWith a photograph of my desk.\n")
        name = "README.md"
    else:
        (folder / "LICENSE").write_text("mine")
        name = "LICENSE"
    with pytest.raises(UserError, match=f"hub: {name} in it is not as ddpm-hf publish wrote it; move it"):
        publish(trained[0]["custom"], folder)
    assert "desk" in (folder / "README.md").read_text() or (folder / "LICENSE").exists()


def test_a_folder_that_somebody_changes_while_the_next_is_made_is_left_alone(trained, tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    make(trained[0]["custom"], folder, "x")

    def note(*_):
        (folder / "README.md").write_text("With a photograph of my desk.")

    monkeypatch.setattr(publishing, "_check", note)  # which takes a while
    with pytest.raises(UserError, match=r"README.md in it is not as ddpm-hf .*; what is finished is in (.*)$") as error:
        publish(trained[0]["custom"], folder)
    assert (folder / "README.md").read_text() == "With a photograph of my desk."
    assert (Path(str(error.value).rpartition(" ")[2]) / "model_index.json").is_file()


# ---- mistakes


def test_what_is_no_run_with_a_pipeline_gets_one_line(trained, published, tmp_path):
    runs, _ = trained
    young, autoencoders = tmp_path / "young", tmp_path / "autoencoders"
    for folder in (young, autoencoders):
        folder.mkdir()
        (folder / "recipe.yaml").write_text((runs["stock"] / "recipe.yaml").read_text())
    (autoencoders / "autoencoder").mkdir()
    (tmp_path / "photos").mkdir()
    for folder, message in (
        (tmp_path / "nowhere", "no such folder; give a run folder"),
        ("~nobody-has-this-name/run", "no such folder; give a run folder"),
        (tmp_path / "photos", "no run folder, which has a recipe.yaml"),
        (runs["stock"] / "pipeline", "a pipeline folder; give the run folder that it came from"),
        (published["stock"][0], "a pipeline folder; give the run folder that it came from"),
        (young, "this run has no pipeline yet"),
        (autoencoders, "an autoencoder's run"),
    ):
        with pytest.raises(UserError) as error:
            publish(folder, tmp_path / "out")
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--variant: 'fp8' is none; choose from fp16, bf16"):
        publish(runs["stock"], tmp_path / "out", variants=["fp8"])
    for option in ({"private": True}, {"revision": "trial"}):
        with pytest.raises(UserError, match=rf"--{next(iter(option))}: is of a repository; name one with --push"):
            publish(runs["stock"], tmp_path / "out", **option)
    with pytest.raises(UserError, match=r"--out: .* is the run folder itself"):
        publish(runs["stock"], runs["stock"])


def test_a_space_does_not_take_the_place_of_something_else(trained, tmp_path, capsys):
    (tmp_path / "hub-space").mkdir()
    (tmp_path / "hub-space" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main(["publish", str(trained[0]["stock"]), "--out", str(tmp_path / "hub"), "--space"])
    assert "hub-space: holds notes.txt, which ddpm-hf publish did not write; move it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hub-space"]


@pytest.mark.parametrize("option", [["--private"], ["--revision", "trial"]])
def test_what_is_of_a_repository_needs_one(trained, option, capsys):
    with pytest.raises(SystemExit):
        main(["publish", str(trained[0]["stock"]), *option])
    assert f"{option[0]}: is of a repository; name one with --push OWNER/NAME" in capsys.readouterr().err


def test_a_space_of_a_branch_is_refused(trained, capsys):
    with pytest.raises(SystemExit):
        main(["publish", str(trained[0]["stock"]), "--push", "ada/digits", "--revision", "trial", "--space"])
    assert "--space: its demo loads the main branch; leave --revision out" in capsys.readouterr().err
