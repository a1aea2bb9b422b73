"""A denoiser of latents through a whole session, on real digits."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ddpm_hf.cli import main
from ddpm_hf.config import load_recipe
from ddpm_hf.data import latents
from ddpm_hf.errors import UserError
from ddpm_hf.loading import load_pipeline
from ddpm_hf.sampling import Sampling, draw_images
from ddpm_hf.training.checkpoints import Checkpoints
from tests.conftest import same_tensors, write_autoencoder

ON_THE_FLY = {"autoencoder.store_latents": False}


def losses(session):
    lines = [json.loads(line) for line in session.run.metrics_file.read_text().splitlines()]
    return np.array([line["loss"] for line in lines if "loss" in line])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 1e-2)])
def test_the_store_gives_the_losses_of_encoding_on_the_fly(
    flip, dtype, tolerance, tiny_latent, build_session, tmp_path
):
    """The same samples of the same posteriors: within the store's number format."""
    runs = []
    for name, settings in (("stored", {"autoencoder.latent_dtype": dtype}), ("encoded", ON_THE_FLY)):
        names = {"run.name": name, "data.store": str(tmp_path / name), "data.flip": flip}
        session = build_session(tiny_latent(**settings, **names))
        session.train()
        runs.append(losses(session))
    assert len(runs[0]) == 8
    np.testing.assert_allclose(*runs, rtol=tolerance)
    assert dtype == "float32" or not np.array_equal(*runs)


def test_posterior_samples_are_drawn_afresh(tiny_latent, build_session):
    session = build_session(tiny_latent())
    batch = session.examples.training.plain([5])["records"]
    torch.manual_seed(1)
    a, b = session.task.codec.encode(batch), session.task.codec.encode(batch)
    assert batch.dtype == torch.float16
    assert not torch.equal(a, b)


def test_the_run_becomes_a_pipeline_that_decodes(tiny_latent, build_session, tmp_path):
    session = build_session(tiny_latent())
    session.train()
    folder = session.run.path / "pipeline"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert (index["num_classes"], index["id2label"]["3"]) == (10, "3")
    config = json.loads((folder / "unet" / "config.json").read_text())
    assert (config["in_channels"], config["sample_size"], config["num_class_embeds"]) == (3, 4, 11)
    assert json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"] == 1.3
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["clip_sample"] is False
    ours = draw_images(load_pipeline(str(session.run.path)), range(4), 4, Sampling("ddim", 4, guidance_scale=2.0))
    assert ours.shape == (4, 1, 8, 8)
    theirs = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    theirs.set_progress_bar_config(disable=True)
    assert theirs(class_labels=["7", 2], guidance_scale=2.0, num_inference_steps=2)[0][0].size == (8, 8)
    main(["sample", str(session.run.path), "--num_images", "3", "--steps", "2", "--class", "7", "--guidance_scale", "3",
          "--out", str(tmp_path / "x.npz"), "--strip", str(tmp_path / "strip.png")])  # fmt: skip
    assert np.load(tmp_path / "x.npz")["images"].shape == (3, 8, 8, 1)
    assert Image.open(tmp_path / "strip.png").mode == "L"


def test_it_resumes_bit_for_bit(tiny_latent, build_session):
    runs = []
    for name, stops in (("whole", [12]), ("parts", [4, 12])):
        for stop in stops:
            session = build_session(tiny_latent(**{"run.name": name, "data.flip": True, "train.max_steps": stop}))
            session.train()
        runs.append(Checkpoints(session.run.checkpoints, 2).at(12))
    for name in ("model", "ema", "optimizer"):
        assert same_tensors(runs[0].tensors(name), runs[1].tensors(name)), name


def test_validation_is_with_labels_and_without(tiny_latent, build_session):
    session = build_session(tiny_latent(**{"condition.dropout": 0.5, "train.max_steps": 4}))
    session.train()
    last = json.loads(session.run.metrics_file.read_text().splitlines()[-1])
    # what they should be, by hand: the same posterior samples, timesteps and noise, the labels or the null class
    task, held_out = session.task, session.examples.validation_indices
    for key, labelled in (("validation_loss", True), ("validation_loss_unlabelled", False)):
        found = []
        for number, start in enumerate(range(0, len(held_out), 8)):
            batch = session.examples.validation.plain(held_out[start : start + 8])
            torch.manual_seed(number)
            x0 = task.codec.encode(batch["records"])
            t = torch.randint(0, 50, (len(x0),))
            noise = torch.randn_like(x0)
            alpha_bar = session.task.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
            x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
            labels = batch["labels"] if labelled else torch.full((len(x0),), 10)
            with torch.no_grad():
                predicted = session.ema.model(x_t, t, class_labels=labels).sample
            found += (predicted - noise).square().mean(dim=(1, 2, 3)).tolist()
        assert last[key] == pytest.approx(np.mean(found), rel=1e-4)
    assert last["validation_loss"] != last["validation_loss_unlabelled"]


def test_the_grid_has_a_row_a_class_and_scales_side_by_side(tiny_latent, build_session):
    sizes = {}
    for scales in ([1], [1, 2, 4]):
        name = {"run.name": f"scales{len(scales)}", "sample.grid_guidance_scales": scales, "sample.num_images": 30}
        session = build_session(tiny_latent(**name))
        session.train()
        sizes[len(scales)] = Image.open(session.run.samples / "step-00000008.png").size
    assert sizes[3][1] == sizes[1][1]  # ten rows
    assert sizes[3][1] > 10 * 64
    assert sizes[1][0] > 3 * 64  # three images of each class at the one scale
    session = build_session(tiny_latent(**{"run.name": "drawn", "sample.num_images": 30, "sample.seed": 3}))
    seen = []
    session.ema.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    session.task.picture(session.ema.model)
    assert seen[0] == list(range(10))  # at scale 1: row c is class c
    assert seen[-1] == [10] * 10 + list(range(10))  # guided: the null class, and the same classes


def test_an_unconditional_model_of_latents(tiny_latent, build_session):
    recipe = tiny_latent(**{"condition.num_classes": None})
    session = build_session(recipe)
    session.train()
    pipe = load_pipeline(str(session.run.path))
    assert pipe.config.num_classes is None
    assert draw_images(pipe, range(2), 2, Sampling("ddim", 2)).shape == (2, 1, 8, 8)


def test_gray_images_through_a_colour_autoencoder(tiny_latent, build_session, tmp_path):
    colour = write_autoencoder(tmp_path / "colour", channels=3, latent_channels=4)
    with pytest.raises(UserError, match=r"takes 3-channel images, data.channels is 1; set autoencoder.gray_as_rgb"):
        build_session(tiny_latent(**{"autoencoder.source": colour}))
    session = build_session(tiny_latent(**{"autoencoder.source": colour, "autoencoder.gray_as_rgb": True}))
    session.train()
    pipe = load_pipeline(str(session.run.path))
    assert draw_images(pipe, range(2), 2, Sampling("ddim", 2)).shape == (2, 1, 8, 8)


def test_what_does_not_fit_is_refused_before_training(tiny_latent, build_session, tmp_path):
    deep = write_autoencoder(tmp_path / "deep", widths=(8, 8, 8))
    five = write_autoencoder(tmp_path / "five", latent_channels=5)
    trained = build_session(tiny_latent(**{"run.name": "trained"}))
    trained.train()
    elsewhere = {"data.store": str(tmp_path / "elsewhere")}
    for overrides, message in (
        (
            {"condition.num_classes": 7},
            "condition.num_classes: 7 is not the number of classes in data.source, 10: 0, 1",
        ),
        ({"data.resolution": 9}, "data.resolution: 9x9 cannot be made 2 times smaller by the autoencoder"),
        (
            {"autoencoder.source": deep},
            "data.resolution: 8x8 gives latents of 2x2, which cannot be halved 2 times by the 3 levels of model.kind"
            " unet2d; 16 can",
        ),
        ({"autoencoder.source": five}, "was prepared with another autoencoder's weights"),
        (
            {"autoencoder.latent_dtype": "float32"},
            "was prepared with autoencoder.latent_dtype float16, the recipe wants",
        ),
        ({"data.flip": True}, "was prepared with data.flip False, the recipe wants True"),
        ({"autoencoder.source": str(tmp_path / "nothing")}, "nothing: no such folder; train it with train_autoencoder"),
        ({"autoencoder.source": str(trained.run.path)}, "holds no autoencoder"),
        (
            {**ON_THE_FLY, "autoencoder.latent_dtype": "float32"},
            "autoencoder.latent_dtype: is for autoencoder.store_la",
        ),
        ({"data.crop": "random"}, "data.crop: random cannot be had from stored latents; take center, or autoencoder"),
        ({"autoencoder.source": None, "autoencoder.batch_size": 4}, "autoencoder.batch_size: needs autoencoder.source"),
        ({"autoencoder.gray_as_rgb": True}, "takes 1 channels, not 3; leave it out"),
    ):
        if overrides.get("autoencoder.source") == deep:
            overrides |= {"model.block_out_channels": [16, 32, 32], "model.attention_resolutions": [2]}
        with pytest.raises(UserError) as error:
            build_session(tiny_latent(**{"run.name": "new", **overrides}))
        assert message in str(error.value), error.value
        assert not (tmp_path / "runs" / "new" / "recipe.yaml").exists()
    file = tmp_path / "continued.yaml"
    file.write_text(
        f"data: {{source: digits, resolution: 8, channels: 1}}\nautoencoder: {{source: {five}}}\n"
        f"model: {{pretrained: {trained.run.path / 'pipeline'}}}\ncondition: {{num_classes: 10}}\n"
        "train: {max_steps: 2, warmup_steps: 0}\n"
    )
    with pytest.raises(UserError, match=r"whose latents have 5 channels, does not fit .* which was trained with 3"):
        build_session(load_recipe(file, elsewhere))


def test_another_autoencoder_or_scale_is_refused_when_it_resumes(tiny_latent, build_session, tmp_path):
    build_session(tiny_latent()).train()
    for name, change in (("other", {"seed": 1}), ("scale", {"scaling_factor": 1.4})):
        other = write_autoencoder(tmp_path / name, **change)
        settings = {
            "autoencoder.source": other,
            "data.store": str(tmp_path / f"prepared-{name}"),
            "train.max_steps": 12,
        }
        with pytest.raises(UserError, match=r"autoencoder.source: is not the autoencoder that .* was trained with"):
            build_session(tiny_latent(**settings)).train()
    moved = write_autoencoder(tmp_path / "moved")  # the same, elsewhere
    build_session(tiny_latent(**{"autoencoder.source": moved, "train.max_steps": 12})).train()


def test_a_learned_variance_on_latents_has_no_pixels_bins(tiny_latent, build_session):
    session = build_session(tiny_latent(**{"diffusion.variance_type": "learned_range", "diffusion.loss": "hybrid"}))
    session.train()
    assert np.isfinite(losses(session)).all()
    with pytest.raises(UserError, match=r"bits per dimension are of 8-bit pixels"):
        session.task.objective.bits_per_dimension(session.model, torch.zeros(1, 3, 4, 4))


def test_prepare_shows_what_the_model_will_see(tiny_latent, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{source: digits, resolution: 8, channels: 1, flip: true, store: {tmp_path / 'latents'}}}\n"
        f"autoencoder: {{source: {tmp_path / 'autoencoder'}}}\nmodel: {{block_out_channels: [32], attention_resolutions: []}}\n"
        "train: {max_steps: 2}\n"
    )
    main(["prepare", str(recipe), "--preview", str(tmp_path / "preview.png")])
    assert f"1,797 images in {tmp_path / 'latents'}" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "latents" / "manifest.json").read_text())
    assert manifest["channels"] == 2 * 2 * 3  # mean and log variance, of each image and its mirror image
    assert Image.open(tmp_path / "preview.png").mode == "L"


def test_mistakes_are_found_before_anything_is_encoded(tiny_latent, build_session, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "_write_all", lambda *_: pytest.fail("encoded"))
    for overrides, message in (
        ({"condition.num_classes": 7}, "condition.num_classes: 7 is not the number of classes in data.source, 10"),
        (
            {"data.validation_split": "test", "data.held_out": 0.0},
            "data.validation_split: digits has no split test; it has train",
        ),
    ):
        with pytest.raises(UserError) as error:
            build_session(tiny_latent(**overrides))
        assert message in str(error.value)
    assert not list((tmp_path / "prepared").glob("shard-*"))


def test_a_changed_recipe_is_refused_before_anything_is_encoded(tiny_latent, build_session, tmp_path, monkeypatch):
    build_session(tiny_latent()).train()
    monkeypatch.setattr(latents, "_write_all", lambda *_: pytest.fail("encoded"))
    elsewhere = {"data.store": str(tmp_path / "elsewhere")}
    with pytest.raises(UserError, match=r"data.flip: .* was trained with False, the recipe now says True"):
        build_session(tiny_latent(**elsewhere, **{"data.flip": True}))


def test_latents_encoded_anew_go_on_with_a_word(tiny_latent, build_session, capsys):
    """Other hardware rounds otherwise; other images are refused all the same."""
    build_session(tiny_latent()).train()
    again = build_session(tiny_latent(**{"train.max_steps": 12}))
    again.examples.store.content = "of other bits"
    again.train()
    assert "the latents were encoded anew, perhaps on other hardware: no longer bit for bit" in capsys.readouterr().out
    other = build_session(tiny_latent(**{"train.max_steps": 16}))
    other.examples.store.content = "of other images"
    other.examples.store.fingerprint["source"] = {"kind": "folder"}
    with pytest.raises(UserError, match=r"data.source: its images are not those that .* was trained on"):
        other.train()


def test_the_denoiser_alone_is_under_autocast(tiny_latent, build_session):
    """In half precision autoencoders overflow, so they decode and encode in float32."""
    session = build_session(tiny_latent(**{"train.precision": "bf16", **ON_THE_FLY}))
    seen = []
    session.task.codec.vae.decoder.conv_in.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    session.task.codec.vae.encoder.conv_in.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    session.ema.model.conv_in.register_forward_hook(lambda _m, _i, output: seen.append(("denoiser", output.dtype)))
    session.train()
    assert set(seen) == {torch.float32, ("denoiser", torch.bfloat16)}
