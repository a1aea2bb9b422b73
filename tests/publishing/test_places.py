"""What names a place on a machine, and what only looks like it."""

import numpy as np
import pytest
from huggingface_hub import constants

from ddpm_hf.config import load_recipe
from ddpm_hf.publishing.check import code_of, difference
from ddpm_hf.publishing.places import is_hub_id, last_name, public_recipe, public_record, without_places
from ddpm_hf.training.origins import found_here


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/ann/cats", "cats"),
        ("/home/ann/my cats/", "my cats"),
        ("~/cats", "cats"),
        ("../cats/train", "train"),
        (r"C:\Users\Ann\cats", "cats"),
        (r"D:\cats.npz", "cats.npz"),
        ("the file /home/ann/cats.npz is broken; see /tmp/log", "the file cats.npz is broken; see log"),
        ("at 12 images/s, 1/2 of them, s of uncond + s (cond - uncond) / 2", None),
        ("https://huggingface.co/docs/hub", None),
        ("see https://huggingface.co/docs/hub, or google/ddpm-cifar10-32", None),
        ("bicubic, antialiased; the middle of each", None),
        ("cleanfid:cifar10:32:train", None),
        ("google/ddpm-cifar10-32", None),
    ],
)
def test_of_a_place_the_last_name_is_left(text, left):
    expected = text if left is None else left
    assert without_places({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


def test_hub_ids_are_what_was_noted_and_in_doubt_places(tmp_path, monkeypatch):
    run = tmp_path / "work" / "runs" / "mine"
    run.mkdir(parents=True)
    (tmp_path / "work" / "photos").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for repo_id in ("stabilityai/sd-vae-ft-mse", "photos/cats"):
        (tmp_path / "cache" / f"models--{repo_id.replace('/', '--')}").mkdir(parents=True)
    for folder in ("/", tmp_path / "work"):  # the current folder decides nothing
        monkeypatch.chdir(folder)
        assert is_hub_id("stabilityai/sd-vae-ft-mse", None, run)
        for text in ("google/ddpm-cifar10-32", "photos/cats", "runs/mine", "a/b/c", "/data/x", "~/x", "./x"):
            assert not is_hub_id(text, None, run)
        assert is_hub_id("google/ddpm-cifar10-32", False, run)
        assert is_hub_id("photos/cats", False, run)  # it was not there
        assert not is_hub_id("google/ddpm-cifar10-32", True, run)
        assert not is_hub_id("runs/mine", False, run)


def test_relative_places_in_records_are_left_as_names_too(tmp_path):
    local = load_recipe("quickstart", {"data.source": "photos/cats"})
    recipe, places = public_recipe(local, False, [], tmp_path)
    assert places == ["data.source"]
    record = {
        "model": "runs/mine",
        "reference": {"source": "photos/cats", "part": "train"},
        "images": {"source": "drawn/of mine"},
        "extractor": {"name": "dinov2", "weights": "facebook/dinov2-base"},
        "classifier": None,
        "metrics": {"fid": 1.0},
    }
    public = public_record(record, local, recipe, tmp_path)
    assert public["model"] == recipe.run.name
    assert public["reference"] == {"source": "cats", "part": "train"}
    assert public["images"] == {"source": "of mine"}
    assert public["extractor"] == record["extractor"]
    for source in ("cleanfid:cifar10:32:train", "https://example.org/x.pt"):
        assert (
            public_record({"reference": {"source": source}}, local, recipe, tmp_path)["reference"]["source"] == source
        )


def test_names_of_references_and_networks_are_no_places(tmp_path):
    settings = {
        "evaluate.every": 600,
        "evaluate.reference": "cleanfid:cifar10:32:train",
        "evaluate.extractor": "dinov2",
    }
    local = load_recipe("quickstart", settings | {"evaluate.extractor_weights": "facebook/dinov2-base"})
    recipe, places = public_recipe(local, False, [], tmp_path)
    assert (recipe.evaluate.reference, recipe.evaluate.extractor_weights) == (
        settings["evaluate.reference"],
        "facebook/dinov2-base",
    )
    assert places == []
    assert public_recipe(local, False, ["evaluate.extractor_weights"], tmp_path)[1] == ["evaluate.extractor_weights"]


def test_a_training_notes_what_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "vae").mkdir(parents=True)
    for source, here in (("mine/vae", ["autoencoder.source"]), ("stabilityai/sd-vae-ft-mse", [])):
        assert found_here(load_recipe("latent/digits", {"autoencoder.source": source})) == here


def test_last_names_of_any_system():
    assert last_name("/a/b/") == last_name(r"C:\a\b") == last_name("b") == "b"
    assert last_name("/") == "here"


def test_the_code_of_a_card_is_its_python_in_order():
    card = "# x\n\n```python\na = 1\n```\n\n```bash\nls\n```\n\ntext `b = 2`\n\n```python\nc = a\n```\n"
    assert code_of(card) == "a = 1\n\nc = a\n"


def test_pictures_may_differ_by_one_gray_level():
    gray, colour = np.full((1, 4, 4), 100, np.uint8), np.full((3, 4, 4), 100, np.uint8)
    ours = {"gray.png": gray, "colour.png": colour}
    theirs = {"gray.png": gray[0] + 1, "colour.png": colour.transpose(1, 2, 0) - 1}
    assert difference(theirs, ours) is None
    far = theirs["colour.png"].copy()
    far[0, 0, 0] = 103
    assert "colour.png is another picture than the run's own of the same seed, by up to 3 gray" in difference(
        theirs | {"colour.png": far}, ours
    )
    assert difference({"gray.png": gray[0]}, ours) == "the card's code saved no colour.png"
    assert "is of shape (4, 4), the run's own of (4, 4, 3)" in difference({**theirs, "colour.png": gray[0]}, ours)
    black, white = np.zeros((1, 2, 2), np.uint8), np.full((2, 2), 255, np.uint8)
    assert "255 gray levels" in difference({"a": white}, {"a": black})  # which uint8 would take for 1
