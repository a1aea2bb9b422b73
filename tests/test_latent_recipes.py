"""The recipes of latents: what the report says, sizes that fit the autoencoders that they name, an autoencoder beside each."""

import json
from pathlib import Path

import pytest

from ddpm_hf.config import AutoencoderRecipe, load_recipe
from ddpm_hf.training.estimate import estimate

ROOT = Path(__file__).parent.parent
IMAGENET = ["", "_cosine", "_learned_variance", "_combined", "_enhanced_attention", "_modern"]
# config.json of stabilityai/sd-vae-ft-mse
STABLE_DIFFUSION = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


@pytest.fixture
def stable_diffusion(tmp_path):
    """Its config alone, which is all that counting needs."""
    folder = tmp_path / "sd-vae-ft-mse"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(STABLE_DIFFUSION))
    return str(folder)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_recipes_fit_the_autoencoder_of_stable_diffusion(name, stable_diffusion):
    assert load_recipe(f"latent/imagenet100_128{name}").autoencoder.source == "stabilityai/sd-vae-ft-mse"
    overrides = {
        "data.source": "digits",
        "train.batch_size": 1,
        "data.validation_split": None,
        "condition.num_classes": 10,
    }
    recipe = load_recipe(f"latent/imagenet100_128{name}", {"autoencoder.source": stable_diffusion, **overrides})
    costs = estimate(recipe, processes=1)
    assert 20e6 < costs["parameters"] < 300e6
    assert 1e9 < costs["flops_per_image"] < 60e9


@pytest.mark.parametrize("name", IMAGENET[:-1])
def test_what_the_report_states_is_set(name):
    recipe = load_recipe(f"latent/imagenet100_128{name}")
    cosine, learned = name in ("_cosine", "_combined"), name in ("_learned_variance", "_combined")
    stated = {
        "data.resolution": (128, 128),
        "condition.num_classes": 100,
        "diffusion.num_train_timesteps": 1000,
        "diffusion.beta_schedule": "squaredcos_cap_v2" if cosine else "linear",
        "diffusion.beta_start": 1e-4 if cosine else 2e-4,  # without a meaning for the cosine
        "diffusion.beta_end": 0.02,
        "diffusion.prediction_type": "epsilon",
        "diffusion.variance_type": "learned_range" if learned else "fixed_small",
        "diffusion.loss": "hybrid" if learned else "mse",
        "train.optimizer": "adamw",
        "train.learning_rate": 1e-4,
        "train.weight_decay": 1e-4,
        "train.max_grad_norm": 1.0,
        "train.learning_rate_schedule": "cosine",
        "train.batch_size": 4,
        "train.epochs": 50,
        "model.kind": "tefiang" if name == "_enhanced_attention" else "unet2d",
        "sample.grid_guidance_scales": (1, 2.5, 3, 4),
    }
    for key, value in stated.items():
        section, _, setting = key.partition(".")
        assert getattr(getattr(recipe, section), setting) == value, key


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "cifar10"])
def test_an_autoencoder_lies_beside_each(name, tmp_path):
    digits = {"data.source": "digits", "data.validation_split": None}
    theirs = load_recipe(f"latent/{name}_autoencoder", digits, AutoencoderRecipe)
    ours = load_recipe(f"latent/{name}")
    assert ours.autoencoder.source == f"runs/{name}_autoencoder/autoencoder"
    assert ours.data.resolution == theirs.data.resolution
    assert ours.data.channels == theirs.data.channels
    assert estimate(theirs, processes=1)["parameters"] < 30e6
    from ddpm_hf.build import build_autoencoder

    build_autoencoder(theirs).autoencoder.save_pretrained(tmp_path)
    fitting = load_recipe(f"latent/{name}", {"autoencoder.source": str(tmp_path), **digits})
    assert estimate(fitting, processes=1)["parameters"] < 200e6


def test_every_recipe_of_the_folder_is_known_here():
    names = {p.stem for p in (ROOT / "configs" / "latent").glob("*.yaml")}
    others = {f"{name}{end}" for name in ("digits", "fashion_mnist", "cifar10") for end in ("", "_autoencoder")}
    assert names == {f"imagenet100_128{name}" for name in IMAGENET} | others
