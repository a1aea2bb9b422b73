import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the Hub's client: tests use the network for nothing

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

TINY = {
    "model.block_out_channels": [16, 32],
    "model.layers_per_block": 1,
    "model.attention_resolutions": [4],
    "model.norm_num_groups": 8,
    "diffusion.num_train_timesteps": 50,
    "train.max_steps": 8,
    "train.batch_size": 8,
    "train.warmup_steps": 2,
    "train.checkpoint_every": 4,
    "sample.steps": 5,
    "sample.num_images": 4,
    "track.log_every": 2,
    "track.trackers": [],
}


@pytest.fixture
def tiny_recipe(tmp_path):
    """A function from overrides to a recipe for a small model on real digits, in a folder of its own."""
    from ddpm_hf.config import load_recipe

    def make(**overrides):
        folders = {"run.output_dir": str(tmp_path / "runs"), "data.store": str(tmp_path / "prepared")}
        tiny = {key: v for key, v in TINY.items() if not ("model.kind" in overrides and key.startswith("model."))}
        return load_recipe("quickstart", {**tiny, **folders, **overrides})

    return make


@pytest.fixture
def tiny_unet():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )


def same_tensors(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(np.asarray(a[k]), np.asarray(b[k])) for k in a)


def write_autoencoder(folder, seed=0, channels=1, latent_channels=3, widths=(8, 16), **config):
    """A small AutoencoderKL with random weights, saved; gives its folder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        norm_num_groups=4,
        latent_channels=latent_channels,
        **{"scaling_factor": 1.3, "shift_factor": 0.2, **config},
    )
    vae.save_pretrained(folder)
    return str(folder)
