"""Models of the page: those that load, those that do not, and code beside weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.app.models import load_models, names_of
from ddpm_hf.errors import UserError
from tests.app.conftest import write_model

CPU = torch.device("cpu")


def test_a_model_that_fails_leaves_the_others(folders):
    models, failures = load_models([folders["broken"], folders["kinds"], "no/such/folder"], CPU)
    assert list(models) == ["kinds"]
    assert [failure.name for failure in failures] == ["broken", "no/such/folder"]
    assert failures[1].message.startswith("no such folder")
    for failure in failures:  # a visitor learns nothing of where it lies
        assert "\n" not in failure.message
        assert folders["broken"] not in failure.message


def test_names(tmp_path):
    for folder in ("runs/a/pipeline", "runs/b/hub", "other/a"):
        (tmp_path / folder).mkdir(parents=True)
    sources = [
        str(tmp_path / "runs" / "a" / "pipeline"),
        str(tmp_path / "runs" / "b" / "hub"),
        str(tmp_path / "other" / "a"),
    ]
    assert names_of([*sources, "google/ddpm-cifar10-32"]) == ["a", "b", "a (2)", "google/ddpm-cifar10-32"]


@pytest.fixture
def own_code(folders, tmp_path, monkeypatch):
    """A model whose network lies beside its weights, and leaves a trace where it is imported."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, trace = tmp_path / "own", tmp_path / "ran"
    write_model(folder, 3)
    code = f"from pathlib import Path\nfrom diffusers import UNet2DModel\n\nPath({str(trace)!r}).touch()\n\n\nclass Mine(UNet2DModel):\n    pass\n"
    (folder / "unet" / "mine_own.py").write_text(code)
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["mine_own", "Mine"]
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "Mine"}))
    return str(folder), trace


def test_code_beside_weights_runs_only_where_it_is_trusted(own_code, folders):
    folder, trace = own_code
    models, failures = load_models([folder, folders["kinds"]], CPU)
    assert list(models) == ["kinds"]
    assert "needs code of its own" in failures[0].message
    assert not trace.exists()
    models, failures = load_models([folder], CPU, trust_remote_code=True)
    assert not failures
    assert trace.exists()


def test_with_its_own_code_a_model_draws_as_it_would_without(own_code, models):
    from ddpm_hf.sampling import Sampling, draw_images

    trusted = load_models([own_code[0]], CPU, trust_remote_code=True)[0]["own"]
    sampling = Sampling("ddim", 5, class_label="kind 1", guidance_scale=2.0)
    np.testing.assert_array_equal(
        *(draw_images(model.pipe, range(3), 3, sampling) for model in (trusted, models["kinds"]))
    )


def test_what_is_trusted_may_still_be_no_such_model(own_code):
    folder, _ = own_code
    index = Path(folder) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["mine_own", "Missing"]}))
    assert "needs code of its own" in load_models([folder], CPU, trust_remote_code=True)[1][0].message


BAD_FILES = {
    "a network of nonsense": ("unet/config.json", {"block_out_channels": "many"}),
    "a network without a size": ("unet/config.json", {"sample_size": None}),
    "names in a list": ("model_index.json", {"id2label": ["a", "b", "c"]}),
    "a schedule of nonsense": ("scheduler/scheduler_config.json", {"num_train_timesteps": "all"}),
}


@pytest.mark.parametrize(("file", "wrong"), BAD_FILES.values(), ids=BAD_FILES)
def test_whatever_is_wrong_with_one_the_others_go_on(folders, tmp_path, file, wrong, capfd):
    folder = Path(write_model(tmp_path / "wrong", 3))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | wrong))
    models, failures = load_models([str(folder), folders["plain"], "x" * 5000], CPU)
    assert list(models) == ["plain"]
    assert [failure.name for failure in failures] == ["wrong", "x" * 5000]
    assert "\n" not in failures[0].message
    assert str(tmp_path) not in failures[0].message


def test_a_model_that_memory_is_too_small_for(folders, monkeypatch):
    from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

    def to(*_args, **_more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ImageGenerationPipeline, "to", to)
    assert load_models([folders["plain"]], CPU)[1][0].message == "too large for this machine's memory"


def test_a_message_names_no_folder():
    from ddpm_hf.app.models import _without_paths

    message = "x: not at /root/.cache/hub/models--a or '/tmp/b c', see google/ddpm-cifar10-32 and https://hf.co/a/b"
    told = _without_paths(message, "x", "x")
    assert "/root" not in told
    assert "/tmp" not in told
    assert "google/ddpm-cifar10-32" in told
    assert "https://hf.co/a/b" in told
    assert _without_paths("a. b.", ".", "here") == "a. b."


def test_code_is_not_looked_for_where_something_else_is_wrong(folders, monkeypatch):
    from ddpm_hf.app import models

    monkeypatch.setattr(models.DiffusionPipeline, "from_pretrained", lambda *_a, **_k: pytest.fail("loaded"))
    assert load_models([folders["broken"], "no/such/folder"], CPU, trust_remote_code=True)[0] == {}


def test_classes_of_the_same_name(folders, tmp_path):
    folder = Path(write_model(tmp_path / "same", 3))
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {"0": "crane", "1": "crane", "2": "drake"}
    (folder / "model_index.json").write_text(json.dumps(index))
    model = load_models([str(folder)], CPU)[0]["same"]
    assert [model.class_name(i) for i in range(4)] == ["crane (0)", "crane (1)", "drake", "no class in particular"]


def test_a_card_asks_nobody_for_anything(folders, tmp_path):
    folder = Path(write_model(tmp_path / "carded"))
    (folder / "README.md").write_text(
        "---\nlicense: mit <img src=https://example.org/q.png> ![q](https://example.org/q.png)\ndatasets:\n- digits\n"
        "---\n# Card\n![samples](samples.png) ![out](../secret.png)"
        " ![far](https://example.org/x.png) <img src='https://example.org/y.png'>\n[link](https://example.org)\n\n"
        "![a [b] c](https://example.org/x.png) ![a\\]b](https://example.org/x.png) ![by][ref] ![again](samples.png)\n\n"
        "<im<img>g src=https://example.org/z.png> [bad](javascript:alert(1))\n\n"
        "<table><tr><td background=https://example.org/z.png style='position:fixed;background:url(https://example.org)'>\n"
        "<form action=https://example.org><input type=image src=https://example.org/z.png></form>\n\n"
        "[ref]: https://example.org/x.png\n"
    )
    Image.new("L", (4, 4)).save(folder / "samples.png")
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    card = load_models([str(folder)], CPU)[0]["carded"].card
    assert list(card.pictures) == ["samples.png"]
    page = card.html(tmp_path / "shown", "there")
    sources = re.findall(r"<[^>]*?\bsrc=\"([^\"]*)\"", page)
    assert sources == ["there/0.png", "there/0.png"]
    assert Image.open(tmp_path / "shown" / "0.png").size == (4, 4)
    allowed = {"h1", "p", "table", "thead", "tbody", "tr", "th", "td", "img", "a"}
    assert set(re.findall(r"<\s*/?\s*([a-z0-9]+)", page)) <= allowed
    assert set(re.findall(r"<[a-z0-9]+[^>]*?\s([a-z]+)=", page)) <= {"src", "alt", "loading", "href", "rel", "target"}
    assert re.findall(r'href="([^"]*)"', page) == ["https://example.org"]
    assert "far" in page
    assert "<th>License</th>" in page
    page = load_models([folders["plain"]], CPU)[0]["plain"].card.html()
    assert "no card" in page
    assert "8x8 pixels" in page


def test_the_card_of_a_run_is_that_of_its_publication(tmp_path):
    write_model(tmp_path / "run" / "pipeline")
    (tmp_path / "run" / "recipe.yaml").write_text("")
    assert "no card" in load_models([str(tmp_path / "run")], CPU)[0]["run"].card.html()
    (tmp_path / "run" / "hub").mkdir()
    (tmp_path / "run" / "hub" / "README.md").write_text("# As it was published\n")
    assert "As it was published" in load_models([str(tmp_path / "run")], CPU)[0]["run"].card.html()


@pytest.mark.parametrize("metadata", ["license: 2024-13-45", "license: [", "- a"])
def test_a_card_with_broken_metadata_costs_the_metadata_alone(tmp_path, metadata):
    folder = Path(write_model(tmp_path / "odd"))
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# Still a card\n")
    assert "<h1>Still a card</h1>" in load_models([str(folder)], CPU)[0]["odd"].card.html()


def test_a_card_that_cannot_be_read_costs_the_card_alone(tmp_path, monkeypatch):
    from ddpm_hf.app import models

    def failing(*_):
        raise PermissionError

    monkeypatch.setattr(models, "card_of", failing)
    assert "cannot be read" in load_models([write_model(tmp_path / "odd")], CPU)[0]["odd"].card.html()


def test_pictures_of_a_card_are_few_enough(tmp_path, monkeypatch):
    from ddpm_hf.app import card

    folder = Path(write_model(tmp_path / "many"))
    (folder / "README.md").write_text("".join(f"![p]({i}.png)\n" for i in range(5)))
    for i in range(5):
        Image.new("L", (4, 4)).save(folder / f"{i}.png")
    monkeypatch.setattr(card, "LARGEST_ALL", 2 * (folder / "0.png").stat().st_size)
    assert list(load_models([str(folder)], CPU)[0]["many"].card.pictures) == ["0.png", "1.png"]


def test_a_card_of_the_hub_comes_with_its_pictures(models, tmp_path, monkeypatch):
    """In the Hub's cache a file is a link to a blob elsewhere; a link to anywhere else is not followed."""
    from ddpm_hf.app import card

    snapshot, blobs = tmp_path / "snapshots" / "0", tmp_path / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "readme").write_text("![a](a.png) ![b](b.png) ![c](../c.png) ![d](https://example.org/d.png)")
    Image.new("L", (4, 4)).save(blobs / "a", "PNG")
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    for name, target in (("README.md", blobs / "readme"), ("a.png", blobs / "a"), ("b.png", tmp_path / "secret.png")):
        (snapshot / name).symlink_to(target)
    assert list(card.card_of(str(snapshot), models["plain"].pipe).pictures) == ["a.png"]
    asked = []

    def download(source, name):
        asked.append((source, name))
        if name == "b.png":
            raise FileNotFoundError
        return str(snapshot / name)

    monkeypatch.setattr(card, "hf_hub_download", download)
    assert list(card.card_of("ada/plain", models["plain"].pipe).pictures) == ["a.png"]
    assert asked == [("ada/plain", "README.md"), ("ada/plain", "a.png"), ("ada/plain", "b.png")]


def test_no_card_is_another_thing_than_a_hub_that_cannot_be_asked(models, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from ddpm_hf.app import card
    from ddpm_hf.app.models import _card

    for error, words in ((EntryNotFoundError, "has no card"), (LocalEntryNotFoundError, "the Hub cannot be reached")):

        def download(source, name, error=error):
            raise error(name)

        monkeypatch.setattr(card, "hf_hub_download", download)
        assert words in _card("ada/plain", models["plain"].pipe).html()


def test_without_any_model_there_is_no_demo(folders):
    from ddpm_hf.app.server import Demo

    with pytest.raises(UserError, match="none of the models can be used; the last: broken: "):
        Demo([folders["broken"]])
