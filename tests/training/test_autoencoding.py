"""An autoencoder through a whole session, on real digits."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ddpm_hf.codec import AutoencoderCodec
from ddpm_hf.config import AutoencoderRecipe, load_recipe
from ddpm_hf.errors import UserError
from ddpm_hf.training.checkpoints import Checkpoints
from ddpm_hf.training.estimate import estimate
from tests.conftest import same_tensors


def tensors(session, step, name):
    return Checkpoints(session.run.checkpoints, 2).at(step).tensors(name)


def logged(session):
    return [json.loads(line) for line in session.run.metrics_file.read_text().splitlines()]


def test_it_leaves_an_autoencoder_whose_config_scales_its_latents(tiny_autoencoder, build_session):
    session = build_session(tiny_autoencoder(**{"train.max_steps": 40, "data.held_out": 0.2}))
    session.train()
    vae = AutoencoderKL.from_pretrained(session.run.path / "autoencoder")
    images = session.examples.training.plain(session.examples.train_indices)["records"]
    torch.manual_seed(0)
    latents = AutoencoderCodec(vae).encode(images)
    assert latents.shape == (len(images), 2, 4, 4)
    assert abs(latents.mean()) < 0.02
    assert abs(latents.std() - 1) < 0.02
    assert vae.config.scaling_factor != 1
    # it is the average's, not the trained weights'
    ema = tensors(session, 40, "ema")
    assert same_tensors(dict(vae.state_dict()), {k.removeprefix("autoencoder."): v for k, v in ema.items()})
    validated = [line for line in logged(session) if "validation_loss" in line]
    assert len(validated) == 10
    assert validated[-1]["validation_psnr"] > validated[0]["validation_psnr"]
    assert 0 < validated[-1]["validation_ssim"] < 1
    assert validated[-1]["validation_loss"] < validated[0]["validation_loss"]


def test_its_picture_has_originals_beside_their_reconstructions(tiny_autoencoder, build_session):
    session = build_session(tiny_autoencoder())
    session.train()
    picture = np.asarray(Image.open(session.run.samples / "step-00000008.png"))
    held = session.examples.validation_indices
    for pair, i in enumerate(np.linspace(0, len(held) - 1, 4).round().astype(int)):
        y, x = 2 + pair * 66, 2
        original = session.examples.validation.plain([held[i]])["records"][0, 0].numpy()
        np.testing.assert_array_equal(picture[y : y + 64 : 8, x : x + 64 : 8], original)
        assert not np.array_equal(picture[y : y + 64 : 8, x + 64 : x + 128 : 8], original)


@pytest.mark.parametrize("start", [None, 5])
def test_it_resumes_bit_for_bit_with_a_discriminator_or_without(start, tiny_autoencoder, build_session):
    settings = {} if start is None else {"loss.discriminator_start": start}
    whole = build_session(tiny_autoencoder(**settings, **{"run.name": "whole", "train.max_steps": 12}))
    whole.train()
    build_session(tiny_autoencoder(**settings)).train()
    parts = build_session(tiny_autoencoder(**settings, **{"train.max_steps": 12}))
    parts.train()
    for name in ("model", "ema", "optimizer"):
        assert same_tensors(tensors(whole, 12, name), tensors(parts, 12, name)), name


def test_the_discriminator_joins_in_at_its_step(tiny_autoencoder, build_session):
    """Until then the autoencoder is trained as without it, and the discriminator not at all; then both are."""
    runs = {}
    for name, settings in (("alone", {}), ("critic", {"loss.discriminator_start": 4})):
        session = build_session(tiny_autoencoder(**settings, **{"run.name": name, "train.max_grad_norm": None}))
        first = {k: v.clone() for k, v in session.model.state_dict().items() if k.startswith("discriminator.")}
        session.train()
        runs[name] = {step: tensors(session, step, "model") for step in (4, 8)}
    critics = [{k: v for k, v in runs["critic"][step].items() if k in first} for step in (4, 8)]
    assert same_tensors(first, critics[0])
    assert not same_tensors(*critics)
    for step, same in ((4, True), (8, False)):
        autoencoder = {k: v for k, v in runs["critic"][step].items() if k not in first}
        assert same_tensors(runs["alone"][step], autoencoder) == same


def test_a_dry_run_counts_it(tiny_autoencoder):
    costs = estimate(tiny_autoencoder(), processes=1)
    with_critic = estimate(tiny_autoencoder(**{"loss.discriminator_start": 0}), processes=1)
    assert 0 < costs["parameters"] < with_critic["parameters"]
    assert 0 < costs["flops_per_image"] < with_critic["flops_per_image"]
    assert costs["optimizer_steps"] == 8


def test_what_cannot_be_is_refused_before_training(tiny_autoencoder, tmp_path):
    for overrides, message in (
        ({"data.resolution": 9}, "data.resolution: 9x9 cannot be halved 1 times by the 2 levels of model.block_out_ch"),
        ({"model.block_out_channels": [8, 18]}, "model.block_out_channels: 18 cannot be split by model.norm_num_gro"),
        ({"loss.perceptual": "lpips"}, "loss.perceptual: lpips is for images of 32 pixels a side and more; take l2"),
        ({"loss.discriminator_weight": 0.2}, "loss.discriminator_weight: needs a discriminator; set loss.discrim"),
        ({"loss.kl_weigth": 0.2}, "loss.kl_weigth: no such setting; did you mean loss.kl_weight?"),
    ):
        with pytest.raises(UserError) as error:
            tiny_autoencoder(**overrides)
        assert message in str(error.value)
    with pytest.raises(
        UserError, match=r"digits_autoencoder.yaml: is the recipe of an autoencoder, which train_autoen"
    ):
        load_recipe("latent/digits_autoencoder")
    with pytest.raises(UserError, match=r"digits.yaml: is the recipe of a diffusion model, with its section condition"):
        load_recipe("latent/digits", kind=AutoencoderRecipe)


def test_another_loss_is_refused_when_it_resumes(tiny_autoencoder, build_session):
    build_session(tiny_autoencoder()).train()
    with pytest.raises(UserError, match=r"loss.kl_weight: .* was trained with 0.0001, the recipe now says 0.01"):
        build_session(tiny_autoencoder(**{"loss.kl_weight": 0.01, "train.max_steps": 12})).train()
