"""The training objective: DDPM's L_simple (Ho et al. 2020, equation 14)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import DDPMScheduler


class NoisePrediction:
    """Mean squared error between the noise and the denoiser's prediction of it."""

    def __init__(self, scheduler: DDPMScheduler, device: torch.device) -> None:
        # equation 4 in float64, cast once: a float32 product is off by 1e-4 where 1 - alpha_bar is small
        alpha_bar = torch.cumprod(1 - scheduler.betas.double(), dim=0)
        self.signal = alpha_bar.sqrt().float().to(device)  # sqrt(alpha_bar_t), (T,)
        self.noise = (1 - alpha_bar).sqrt().float().to(device)  # sqrt(1 - alpha_bar_t), (T,)

    def __call__(
        self,
        denoiser: Callable,
        x0: torch.Tensor,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> torch.Tensor:
        """Algorithm 1, lines 3 to 5, for one batch.

        `x0`: float32 (N, C, H, W) in [-1, 1]. Draws from torch's default generators, which the caller seeds.
        Returns each image's loss, float32 (N,). Only the denoiser runs under `autocast`.
        """
        # line 3: t ~ Uniform({0, ..., T-1}), int64 (N,)
        t = torch.randint(len(self.signal), (len(x0),), device=x0.device)
        # line 4: epsilon ~ N(0, I), float32 (N, C, H, W)
        epsilon = torch.randn_like(x0)
        # x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon
        x_t = self.signal[t].view(-1, 1, 1, 1) * x0 + self.noise[t].view(-1, 1, 1, 1) * epsilon
        # line 5: || epsilon - epsilon_theta(x_t, t) ||^2
        with autocast():
            prediction = denoiser(x_t, t).sample
        return (prediction.float() - epsilon).square().mean(dim=(1, 2, 3))
