"""Models of the page: those that load, those that do not, and code beside weights."""

import json

import numpy as np
import pytest
import torch

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
    from pathlib import Path

    index = Path(folder) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["mine_own", "Missing"]}))
    assert "needs code of its own" in load_models([folder], CPU, trust_remote_code=True)[1][0].message


def test_a_card_asks_nobody_for_anything(folders, tmp_path):
    from pathlib import Path

    from PIL import Image

    folder = Path(write_model(tmp_path / "carded"))
    (folder / "README.md").write_text(
        "---\nlicense: mit\ndatasets:\n- digits\n---\n# Card\n![samples](samples.png) ![out](../secret.png)"
        " ![far](https://example.org/x.png) <img src='https://example.org/y.png'>\n[link](https://example.org)\n"
    )
    Image.new("L", (4, 4)).save(folder / "samples.png")
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    card = load_models([str(folder)], CPU)[0]["carded"].card
    assert "| License | mit |" in card
    assert "| Data | digits |" in card
    assert card.count("](data:image/png;base64,") == 1
    assert "*out*" in card
    assert "*far*" in card
    assert "example.org/y.png" not in card
    assert "[link](https://example.org)" in card
    card = load_models([folders["plain"]], CPU)[0]["plain"].card
    assert "no card" in card
    assert "| Pictures | 8x8 pixels |" in card


def test_without_any_model_there_is_no_demo(folders):
    from ddpm_hf.app.server import Demo

    with pytest.raises(UserError, match="none of the models can be used; the last: broken: "):
        Demo([folders["broken"]])
