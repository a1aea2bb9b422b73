"""The training objective: what one batch is asked, and how wrong the answer is."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import DDPMScheduler

from ddpm_hf.config import Condition, Diffusion
from ddpm_hf.diffusion.likelihood import bits_per_dimension, log_variance_of, vlb_term
from ddpm_hf.diffusion.process import DiffusionProcess
from ddpm_hf.diffusion.timesteps import ImportanceTimesteps, UniformTimesteps
from ddpm_hf.errors import UserError

Autocast = Callable[[], AbstractContextManager]


class Objective:
    """Algorithm 1, lines 3 to 5 (Ho et al. 2020), for any prediction type, variance and loss of the recipe.

    `gather` joins a tensor (N, ...) of all processes, for what they have to share. Only the denoiser runs under
    `autocast`; the rest is computed in `dtype`. `discrete`: x_0 are 8-bit pixels; False of latents.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        condition: Condition,
        scheduler: DDPMScheduler,
        device: torch.device,
        gather: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
        dtype: torch.dtype = torch.float32,
        *,
        discrete: bool = True,
    ) -> None:
        self.diffusion, self.condition, self.discrete = diffusion, condition, discrete
        self.process = DiffusionProcess(scheduler.betas, device, dtype)
        self.uniform = UniformTimesteps(self.process.T, device)
        importance = diffusion.timestep_sampling == "importance"
        self.timesteps = ImportanceTimesteps(self.process.T, device, gather) if importance else self.uniform

    def __call__(
        self,
        denoiser: Callable,
        x0: torch.Tensor,
        labels: torch.Tensor | None = None,
        autocast: Autocast = nullcontext,
    ) -> torch.Tensor:
        """Each image's training loss, (N,).

        `x0`: (N, C, H, W), pixels in [-1, 1] or latents; `labels`: int64 (N,), of a conditional model. Draws from torch's default
        generators, which the caller seeds.
        """
        # line 3: t ~ Uniform({0, ..., T-1}), int64 (N,); or by importance, with weights
        t, weight = self.timesteps.draw(len(x0))
        # line 4: epsilon ~ N(0, I), (N, C, H, W)
        epsilon = torch.randn_like(x0)
        if self.condition.num_classes is not None:
            # the null class for some (Ho & Salimans 2022, algorithm 1), drawn for each image
            dropped = torch.rand(len(x0), device=x0.device) < self.condition.dropout
            labels = torch.where(dropped, self.condition.num_classes, labels)
        # line 5
        loss = self.loss_at(denoiser, x0, t, epsilon, labels, autocast)
        self.timesteps.observe(t, loss.detach())
        return weight.to(loss.dtype) * loss

    def validation(
        self,
        denoiser: Callable,
        x0: torch.Tensor,
        labels: torch.Tensor | None = None,
        autocast: Autocast = nullcontext,
    ) -> torch.Tensor:
        """The same loss, (N,), at uniform timesteps, with every label and without learning from what it sees."""
        t, _ = self.uniform.draw(len(x0))
        return self.loss_at(denoiser, x0, t, torch.randn_like(x0), labels, autocast)

    def loss_at(
        self,
        denoiser: Callable,
        x0: torch.Tensor,
        t: torch.Tensor,
        epsilon: torch.Tensor,
        labels: torch.Tensor | None = None,
        autocast: Autocast = nullcontext,
    ) -> torch.Tensor:
        """The loss (N,) at the timesteps `t` (N,) with the noise `epsilon` (N, C, H, W)."""
        process, kind = self.process, self.diffusion.prediction_type
        x_t = process.q_sample(x0, t, epsilon)
        prediction, fraction = self._predict(denoiser, x_t, t, labels, autocast)
        if self.diffusion.loss == "mse":
            return self._mse(prediction, x0, t, epsilon)
        log_variance = log_variance_of(process, t, fraction)
        if self.diffusion.loss == "vlb":
            predicted_x0 = process.to_x0(kind, prediction, x_t, t)
            return process.T * vlb_term(process, x0, x_t, t, predicted_x0, log_variance, self.discrete)
        # L_hybrid = L_simple + lambda L_vlb, where L_vlb learns the variance alone (Nichol & Dhariwal 2021, section 3.1)
        predicted_x0 = process.to_x0(kind, prediction.detach(), x_t, t)
        vlb = process.T * vlb_term(process, x0, x_t, t, predicted_x0, log_variance, self.discrete)
        return self._mse(prediction, x0, t, epsilon) + self.diffusion.vlb_weight * vlb

    def bits_per_dimension(
        self,
        denoiser: Callable,
        x0: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        autocast: Autocast = nullcontext,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The bound on each image's negative log-likelihood, (N,), and its terms, (N, T + 1); T forward passes."""
        if not self.discrete:
            raise UserError("bits per dimension are of 8-bit pixels; this model works on latents")

        def predict(x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
            return self._predict(denoiser, x_t, t, labels, autocast)

        return bits_per_dimension(self.process, predict, x0, self.diffusion.prediction_type, generator)

    def _predict(
        self, denoiser: Callable, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, autocast: Autocast
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """The denoiser's prediction (N, C, H, W), and where the log variance lies between beta tilde (0) and beta (1)."""
        with autocast():
            if self.condition.num_classes is None:
                output = denoiser(x_t, t).sample
            else:
                output = denoiser(x_t, t, class_labels=labels).sample
        output = output.to(x_t.dtype)
        match self.diffusion.variance_type:
            case "learned_range":
                prediction, variance = output.chunk(2, dim=1)
                return prediction, (variance + 1) / 2  # the network gives v of equation 15 as [-1, 1]
            case "fixed_small":
                return output, 0.0
            case "fixed_large":
                return output, 1.0
            case "fixed_exponent":
                return output, self.diffusion.variance_exponent

    def _mse(self, prediction: torch.Tensor, x0: torch.Tensor, t: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
        """L_simple (Ho et al. 2020, equation 14), in what is predicted; weighted by min-SNR where asked."""
        kind = self.diffusion.prediction_type
        target = self.process.target(kind, x0, t, epsilon)
        error = (prediction - target).square().mean(dim=(1, 2, 3))
        if (gamma := self.diffusion.min_snr_gamma) is None:
            return error
        # the weight of x_0's error, min(SNR, gamma), over what this error is in x_0's terms (Hang et al. 2023, section 3.4)
        snr = self.process.snr[t]
        in_x0 = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}[kind]
        return snr.clamp(max=gamma) / in_x0 * error
