"""Every denoiser with every objective and every sampler that a recipe accepts trains and draws."""

import numpy as np
import pytest
import torch

from ddpm_hf.build import build_denoiser
from ddpm_hf.diffusion.objective import Objective
from ddpm_hf.diffusion.samplers import SAMPLERS
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, draw_images

DENOISERS = {
    "unet2d": {
        "model.layers_per_block": 1,
        "model.block_out_channels": [16, 16],
        "model.norm_num_groups": 8,
        "model.attention_resolutions": [4],
    },
    "jones": {"model.base_channels": 8},
    "peng": {"model.base_channels": 8, "model.time_embed_dim": 16},
    "das": {"model.base_channels": 8, "model.channel_multipliers": [1, 2]},
    "luu": {"model.base_channels": 8, "model.channel_multipliers": [1, 2]},
    "tefiang": {
        "model.block_out_channels": [16, 32],
        "model.layers_per_block": 1,
        "model.norm_num_groups": 8,
        "model.attention_head_dim": 8,
        "model.attention_resolutions": [4],
    },
}
OBJECTIVES = {
    "epsilon": {},
    "x0": {"prediction_type": "sample"},
    "v": {"prediction_type": "v_prediction"},
    "v, zero terminal SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "x0, zero terminal SNR": {"prediction_type": "sample", "rescale_betas_zero_snr": True},
    "epsilon, min-SNR": {"min_snr_gamma": 5.0},
    "v, min-SNR": {"prediction_type": "v_prediction", "min_snr_gamma": 5.0},
    "hybrid": {"variance_type": "learned_range", "loss": "hybrid", "beta_schedule": "squaredcos_cap_v2"},
    "hybrid of v": {"variance_type": "learned_range", "loss": "hybrid", "prediction_type": "v_prediction"},
    "hybrid of x0": {"variance_type": "learned_range", "loss": "hybrid", "prediction_type": "sample"},
    "hybrid, zero terminal SNR": {
        "variance_type": "learned_range",
        "loss": "hybrid",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    },
    "vlb of v": {"variance_type": "learned_range", "loss": "vlb", "prediction_type": "v_prediction"},
    "vlb of x0, zero terminal SNR": {
        "variance_type": "learned_range",
        "loss": "vlb",
        "prediction_type": "sample",
        "rescale_betas_zero_snr": True,
    },
    "vlb": {"variance_type": "learned_range", "loss": "vlb", "timestep_sampling": "importance"},
    "vlb, fixed variance": {"loss": "vlb", "variance_type": "fixed_large", "beta_schedule": "sigmoid"},
    "constant exponent": {"variance_type": "fixed_exponent", "variance_exponent": 0.3},
    "sigmoid of alpha bar": {"beta_schedule": "sigmoid_alpha_bar", "variance_type": "fixed_large"},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", DENOISERS)
def test_it_trains_and_draws(kind, objective, tiny_recipe):
    labelled = list(OBJECTIVES).index(objective) % 2 == 1  # half of them with labels
    recipe = tiny_recipe(
        **{"model.kind": kind, **DENOISERS[kind]},
        **{f"diffusion.{name}": value for name, value in OBJECTIVES[objective].items()},
        **({"condition.num_classes": 3} if labelled else {}),
    )
    torch.manual_seed(0)
    denoiser, scheduler = build_denoiser(recipe), build_scheduler(recipe.diffusion)
    loss_of = Objective(recipe.diffusion, recipe.condition, scheduler, torch.device("cpu"))
    x0, labels = torch.rand(4, 1, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-4)
    loss = loss_of(denoiser, x0, labels)
    assert loss.shape == (4,)
    loss.mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in denoiser.parameters())
    # of every layer something learns; zero-initialised ones hold back at most what lies behind them
    assert sum(p.grad is not None and bool(p.grad.any()) for p in denoiser.parameters()) > 10
    optimizer.step()

    pipe = ImageGenerationPipeline(
        denoiser.eval(),
        scheduler,
        num_classes=recipe.condition.num_classes,
        variance_exponent=recipe.diffusion.variance_exponent,
    )
    for sampler in SAMPLERS:
        sampling = Sampling(sampler, 3, guidance_scale=2.0 if labelled else 1.0)
        images = draw_images(pipe, range(2), 2, sampling)
        assert images.shape == (2, 1, 8, 8)
        assert np.unique(images).size > 2, sampler  # that they are finite is checked before they are rounded
