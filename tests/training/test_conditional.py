"""Labels, learned variance and importance sampling through a whole session."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ddpm_hf import sample_grid
from ddpm_hf.cli import main
from ddpm_hf.data.dataset import check_validation_labels
from ddpm_hf.data.prepare import prepare, validation_data
from ddpm_hf.errors import UserError
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pictures import class_grid
from ddpm_hf.sampling import Sampling, draw_images
from ddpm_hf.training.checkpoints import Checkpoints
from tests.conftest import same_tensors

CONSTANT = {"train.learning_rate_schedule": "constant"}
LABELS = {"condition.num_classes": 10, "sample.guidance_scale": 2.0}
IMPORTANCE = {
    "diffusion.variance_type": "learned_range",
    "diffusion.loss": "vlb",
    "diffusion.timestep_sampling": "importance",
    "diffusion.num_train_timesteps": 4,  # so few that each is seen often enough to be drawn by its losses
    "sample.steps": 4,
}


def tensors(session, step, name):
    return Checkpoints(session.run.checkpoints, 2).at(step).tensors(name)


def test_a_conditional_run_becomes_a_pipeline_that_knows_its_classes(tiny_recipe, build_session, tmp_path, capsys):
    session = build_session(tiny_recipe(**LABELS))
    session.train()
    index = json.loads(((session.run.path / "pipeline") / "model_index.json").read_text())
    assert index["num_classes"] == 10
    assert index["id2label"] == {str(i): str(i) for i in range(10)}
    assert json.loads(((session.run.path / "pipeline") / "unet" / "config.json").read_text())["num_class_embeds"] == 11
    out = [
        "--num_images",
        "2",
        "--steps",
        "3",
        "--class",
        "7",
        "--guidance_scale",
        "2",
        "--out",
        str(tmp_path / "x.npz"),
    ]
    main(["sample", str(session.run.path), *out])
    assert np.load(tmp_path / "x.npz")["labels"].tolist() == [7, 7]
    main(["sample", str(session.run.path), "--num_images", "12", "--steps", "2", "--out", str(tmp_path / "y.npz")])
    assert np.load(tmp_path / "y.npz")["labels"].tolist() == [*range(10), 0, 1]
    for wrong, message in (
        (["--class", "12"], "--class: class 12 is not one of the ids 0 to 9"),
        (["--class", "cat"], "--class: no class is named 'cat'; this model knows '0', '1', '2'"),
        (["--eta", "1"], "--eta: is for --sampler ddim"),
        (["--guidance_scale", "-1"], "--guidance_scale: '-1' should be a number of at least 0"),
        (["--sampler", "ddim", "--eta", "2"], "--eta: 2 is more than 1"),
        (["--guidance_interval", "1", "5"], "--guidance_interval: needs a --guidance_scale"),
        (["--guidance_scale", "2", "--guidance_interval", "5", "1"], "should be the lower noise level first"),
    ):
        with pytest.raises(SystemExit) as error:
            main(["sample", str(session.run.path), *wrong])
        assert error.value.code == 2
        assert message in capsys.readouterr().err
    assert Image.open(next(session.run.samples.iterdir())).mode == "L"


def test_labels_change_what_is_learned_and_the_null_class_is_trained(tiny_recipe, build_session):
    sessions = []
    for name, source_labels in (("true", None), ("shifted", 1)):
        session = build_session(tiny_recipe(**LABELS, **{"run.name": name, "condition.dropout": 0.5}))
        before = session.model.class_embedding.weight.detach().clone()
        if source_labels is not None:
            session.examples.store.labels[:] = (session.examples.store.labels + source_labels) % 10
        session.train()
        assert not torch.equal(before[10], session.model.class_embedding.weight[10])  # the null class's own
        sessions.append(tensors(session, 8, "model"))
    assert not same_tensors(*sessions)


def test_labels_must_be_those_that_the_model_is_made_for(tiny_recipe, build_session, tmp_path):
    with pytest.raises(
        UserError, match=r"condition.num_classes: 3 is not the number of classes in data.source, 10: 0, 1"
    ):
        build_session(tiny_recipe(**{"condition.num_classes": 3}))
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / "images" / f"{i}.png")
    with pytest.raises(UserError, match=r"10 classes need a label for every image, and data.source has none"):
        build_session(
            tiny_recipe(**LABELS, **{"data.source": str(tmp_path / "images"), "data.store": str(tmp_path / "other")})
        )


def test_importance_sampling_resumes_bit_for_bit(tiny_recipe, build_session):
    overrides = {**CONSTANT, **LABELS, **IMPORTANCE, "train.max_steps": 16}
    whole = build_session(tiny_recipe(**overrides, **{"run.name": "whole"}))
    whole.train()
    build_session(tiny_recipe(**(overrides | {"train.max_steps": 12}))).train()
    parts = build_session(tiny_recipe(**overrides))
    parts.train()
    assert (tensors(whole, 12, "objective")["seen"] >= 10).all()  # past its uniform beginning
    for name in ("model", "ema", "optimizer", "objective"):
        assert same_tensors(tensors(whole, 16, name), tensors(parts, 16, name)), name


def test_a_learned_variance_serves_every_sampler(tiny_recipe, build_session):
    recipe = tiny_recipe(**{"diffusion.variance_type": "learned_range", "diffusion.loss": "hybrid"})
    session = build_session(recipe)
    session.train()
    pipe = load_pipeline(str(session.run.path))
    assert pipe.unet.config.out_channels == 2 * pipe.unet.config.in_channels
    for sampler in ("ddpm", "ddim", "dpmsolver++", "unipc", "heun"):
        assert draw_images(pipe, range(2), 2, Sampling(sampler, 3)).shape == (2, 1, 8, 8)


def test_a_saved_pipeline_draws_what_the_run_draws(tiny_recipe, build_session):
    session = build_session(tiny_recipe(**LABELS, **{"model.kind": "peng", "model.base_channels": 8, "train.batch_size": 8,
        "train.max_steps": 4, "train.warmup_steps": 1}))  # fmt: skip
    session.train()
    sampling = Sampling("dpmsolver++", 5, guidance_scale=2.0)
    ours = draw_images(session.task.pipeline(session.ema.model), range(4), 4, sampling)
    np.testing.assert_array_equal(draw_images(load_pipeline(str(session.run.path)), range(4), 4, sampling), ours)


def test_the_grid_during_training_is_guided_as_the_recipe_says(tiny_recipe, build_session, monkeypatch):
    """Another scale, another interval, another grid; the weights, of which it is drawn, are the same."""
    grids, weights, drawn = [], [], []
    monkeypatch.setattr(
        sample_grid, "class_grid", lambda images, *names: drawn.append(images) or class_grid(images, *names)
    )
    for n, sample in enumerate(
        (
            {"sample.guidance_scale": 1.0},
            {"sample.guidance_scale": 9.0},
            {"sample.guidance_scale": 9.0, "sample.guidance_interval": [0.5, 2.0]},
            {"sample.guidance_scale": 9.0, "sample.guidance_interval": [1e6, 2e6]},  # above every level: never
        )
    ):
        scales = {"sample.grid_guidance_scales": [1.0, sample["sample.guidance_scale"]]}
        session = build_session(tiny_recipe(**LABELS | sample | scales, **{"run.name": f"run{n}"}))
        session.train()
        grids.append(drawn[-1][:, -1].tobytes())  # the last column of scales is the recipe's
        weights.append(tensors(session, 8, "model"))
    assert all(same_tensors(weights[0], other) for other in weights[1:])
    assert grids[0] == grids[3]
    assert len(set(grids)) == 3


def test_a_class_is_found_by_its_name_before_its_id(tiny_recipe, build_session, tmp_path):
    """Folders named by numbers are sorted as text: 1, 10, 2."""
    for name in ("1", "10", "2"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (8, 8), 20 * i).save(tmp_path / "images" / name / f"{i}.png")
    overrides = {"data.source": str(tmp_path / "images"), "data.store": str(tmp_path / "other")}
    session = build_session(tiny_recipe(**LABELS | overrides | {"condition.num_classes": 3}))
    session.train()
    for text, label in (("2", 2), ("10", 1), ("1", 0), ("0", 0)):
        main(["sample", str(session.run.path), "--num_images", "1", "--steps", "1", "--class", text,
              "--out", str(tmp_path / "x.npz")])  # fmt: skip
        assert np.load(tmp_path / "x.npz")["labels"].tolist() == [label]


def test_a_validation_split_without_labels_is_refused_before_training(tiny_recipe, build_session, tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / "images" / split / name / "0.png")
    overrides = {
        "data.source": str(tmp_path / "images"),
        "data.store": str(tmp_path / "other"),
        "data.validation_split": "test",
    }
    validation = prepare(validation_data(tiny_recipe(**overrides).data), progress=False)
    validation.labels[:] = -1
    store = prepare(tiny_recipe(**overrides).data, progress=False)
    with pytest.raises(UserError, match=r"data.validation_split: 2 of its images have no label"):
        check_validation_labels(store, validation)
    validation.class_names = ["b", "a"]
    with pytest.raises(UserError, match=r"its classes are \['b', 'a'\], those trained on \['a', 'b'\]"):
        check_validation_labels(store, validation)
    build_session(tiny_recipe(**overrides))  # an unconditional model has no use for them


def test_a_validation_split_is_read_and_never_trained_on(tiny_recipe, build_session, tmp_path):
    """Two splits of real digits: the loss is of the second one's images, and the weights do not depend on it."""
    pixels, labels = load_digits(return_X_y=True)
    for split, part in (("train", slice(0, 300)), ("test", slice(300, 340)), ("validation", slice(340, 420))):
        for i, (image, label) in enumerate(zip(pixels[part], labels[part], strict=True)):
            folder = tmp_path / "digits" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image.reshape(8, 8) * 15).astype(np.uint8)).save(folder / f"{i}.png")
    weights, losses = [], []
    for split in ("test", "validation"):
        recipe = tiny_recipe(
            **LABELS,
            **{"data.source": str(tmp_path / "digits"), "data.store": str(tmp_path / split), "run.name": split},
            **{"data.validation_split": split},
        )
        session = build_session(recipe)
        assert len(session.examples.train_indices) == 300
        assert len(session.examples.validation) == {"test": 40, "validation": 80}[split]
        session.train()
        weights.append(tensors(session, 8, "model"))
        losses.append(session.validation[1])
    assert same_tensors(*weights)
    assert losses[0] != losses[1]
