"""The objective against DDPM's equations, written again here from the paper."""

import numpy as np
import pytest
import torch

from ddpm_hf.config import Diffusion
from ddpm_hf.diffusion.objective import NoisePrediction
from ddpm_hf.diffusion.schedule import build_scheduler


class Output:
    def __init__(self, sample):
        self.sample = sample


def linear_betas(T=1000, start=1e-4, end=0.02):
    return np.linspace(start, end, T, dtype=np.float64)


def cosine_betas(T=1000, s=0.008):
    """Nichol & Dhariwal (2021), equation 17."""

    def f(t):
        return np.cos((t / T + s) / (1 + s) * np.pi / 2) ** 2

    return np.minimum(1 - f(np.arange(1, T + 1)) / f(np.arange(T)), 0.999)


@pytest.mark.parametrize(
    ("settings", "betas"),
    [
        ({}, linear_betas()),
        ({"num_train_timesteps": 100}, linear_betas(100)),
        ({"beta_start": 2e-4}, linear_betas(start=2e-4)),
        ({"beta_schedule": "scaled_linear"}, np.linspace(1e-2, 0.02**0.5, 1000) ** 2),
        ({"beta_schedule": "squaredcos_cap_v2"}, cosine_betas()),
    ],
)
def test_x_t_and_the_loss(settings, betas):
    objective = NoisePrediction(build_scheduler(Diffusion(**settings)), torch.device("cpu"))
    alpha_bar = np.cumprod(1 - betas)  # equation 4
    x0 = torch.randn(64, 3, 4, 5, dtype=torch.float64).float()
    seen = {}

    def denoiser(x_t, t):
        seen.update(x_t=x_t, t=t)
        return Output(torch.zeros_like(x_t))

    torch.manual_seed(7)
    loss = objective(denoiser, x0)
    t = seen["t"].numpy()
    assert t.dtype == np.int64
    assert t.min() >= 0
    assert t.max() < len(betas)
    # the noise that was added, from x_t alone (equation 4): what a zero prediction is compared with
    a = alpha_bar[t][:, None, None, None]
    epsilon = (seen["x_t"].double().numpy() - np.sqrt(a) * x0.double().numpy()) / np.sqrt(1 - a)
    large = np.sqrt(1 - alpha_bar[t]) > 0.05  # where the division does not blow up float32 rounding
    np.testing.assert_allclose(loss.numpy()[large], (epsilon**2).mean((1, 2, 3))[large], rtol=1e-4)
    assert abs(epsilon[large].mean()) < 0.05
    assert abs(epsilon[large].std() - 1) < 0.05


def test_coefficients_are_right_to_float32_where_a_float32_product_is_not():
    scheduler = build_scheduler(Diffusion())
    objective = NoisePrediction(scheduler, torch.device("cpu"))
    exact = np.sqrt(1 - np.cumprod(1 - linear_betas()))
    ours = np.abs(objective.noise.double().numpy() / exact - 1).max()
    theirs = np.abs((1 - scheduler.alphas_cumprod).sqrt().double().numpy() / exact - 1).max()
    assert ours < 1e-6 < 5e-5 < theirs


def test_a_perfect_prediction_has_no_loss():
    objective = NoisePrediction(build_scheduler(Diffusion()), torch.device("cpu"))
    x0 = torch.rand(16, 1, 8, 8) * 2 - 1
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

    def knows_x0(x_t, t):
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return Output(((x_t.double() - a.sqrt() * x0.double()) / (1 - a).sqrt()).float())

    assert objective(knows_x0, x0).max() < 1e-6


def test_timesteps_are_uniform():
    objective = NoisePrediction(build_scheduler(Diffusion(num_train_timesteps=10)), torch.device("cpu"))
    counts = np.zeros(10)

    def denoiser(x_t, t):
        np.add.at(counts, t.numpy(), 1)
        return Output(x_t)

    torch.manual_seed(0)
    for _ in range(20):
        objective(denoiser, torch.zeros(500, 1, 1, 1))
    chi2 = ((counts - 1000) ** 2 / 1000).sum()
    assert chi2 < 27.9  # 0.999 quantile of chi-squared with 9 degrees of freedom


def test_only_the_denoiser_runs_under_autocast(tiny_unet):
    objective = NoisePrediction(build_scheduler(Diffusion()), torch.device("cpu"))
    seen = []

    def denoiser(x_t, t):
        seen.append(x_t.dtype)
        output = tiny_unet(x_t, t)
        seen.append(output.sample.dtype)
        return output

    loss = objective(denoiser, torch.zeros(2, 1, 8, 8), lambda: torch.autocast("cpu", torch.bfloat16))
    assert seen == [torch.float32, torch.bfloat16]
    assert loss.dtype == torch.float32
