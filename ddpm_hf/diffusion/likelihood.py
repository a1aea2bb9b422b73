"""The variational bound on the negative log-likelihood, in bits per dimension."""

import math
from collections.abc import Callable

import torch
from diffusers.utils.torch_utils import randn_tensor

from ddpm_hf.diffusion.process import DiffusionProcess, PredictionType, at


def normal_kl(mean: torch.Tensor, log_variance: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor):
    """KL( N(mean, exp log_variance) || N(mean2, exp log_variance2) ), elementwise, in nats."""
    ratio = log_variance - log_variance2
    return 0.5 * (ratio.exp() + (mean - mean2).square() * (-log_variance2).exp() - 1 - ratio)


def discretized_gaussian_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor):
    """log p(x) of 8-bit pixels, scaled to [-1, 1], under a Gaussian: its mass within half a gray level of x.

    Ho et al. 2020, equation 13; elementwise, in nats. The bins of 0 and 255 reach to infinity.
    """
    half, scale = 1 / 255, (-0.5 * log_variance).exp()
    upper, lower = (x - mean + half) * scale, (x - mean - half) * scale
    # in logarithms, mirrored to the side of zero where the normal's tail is exact: bins far out keep their gradient
    mirror = (x > mean).to(x.dtype) * -2 + 1
    a, b = torch.where(mirror > 0, upper, -lower), torch.where(mirror > 0, lower, -upper)
    log_a, log_b = log_normal_cdf(a), log_normal_cdf(b)
    inside = log_a + torch.log1p(-(log_b - log_a).exp().clamp(max=1 - 1e-7))
    edges = torch.where(x < -0.999, log_normal_cdf(upper), log_normal_cdf(-lower))
    return torch.where(x.abs() > 0.999, edges, inside)


def gaussian_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor):
    """log N(x; mean, exp log_variance), a density; elementwise, in nats."""
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean).square() * (-log_variance).exp())


def log_normal_cdf(x: torch.Tensor) -> torch.Tensor:
    """log of the standard normal's distribution function; torch.special.log_ndtr's gradient loses all digits far out."""
    below, above = x.clamp(max=0) * -math.sqrt(0.5), x.clamp(min=0) * math.sqrt(0.5)
    tail = torch.special.erfcx(below).log() - math.log(2) - below.square()
    return torch.where(x < 0, tail, torch.log1p(-0.5 * torch.special.erfc(above)))


def log_variance_of(process: DiffusionProcess, t: torch.Tensor, fraction: torch.Tensor | float) -> torch.Tensor:
    """log Sigma between its bounds, Nichol & Dhariwal 2021, equation 15: `fraction` 0 is beta tilde, 1 is beta."""
    return fraction * at(process.log_beta, t) + (1 - fraction) * at(process.log_posterior_variance, t)


def vlb_term(
    process: DiffusionProcess,
    x0: torch.Tensor,
    x_t: torch.Tensor,
    t: torch.Tensor,
    predicted_x0: torch.Tensor,
    log_variance: torch.Tensor,
    discrete: bool = True,
) -> torch.Tensor:
    """L_{t-1}, or L_0 at the first timestep (Ho et al. 2020, equation 5), in bits per dimension, (N,).

    `x0`: (N, C, H, W) in [-1, 1], of 8-bit pixels; if not `discrete`, any continuous values, such as latents, whose L_0
    is that of a density and may be negative.
    """
    mean = process.posterior_mean(predicted_x0, x_t, t)
    log_variance = log_variance.expand_as(mean)
    true_mean = process.posterior_mean(x0, x_t, t)
    kl = normal_kl(true_mean, at(process.log_posterior_variance, t), mean, log_variance)
    log_likelihood = discretized_gaussian_log_likelihood if discrete else gaussian_log_likelihood
    decoder = -log_likelihood(x0, mean, log_variance)
    first = (t == 0).view(-1, 1, 1, 1)
    return torch.where(first, decoder, kl).mean(dim=(1, 2, 3)) / math.log(2)


@torch.no_grad()
def bits_per_dimension(
    process: DiffusionProcess,
    predict: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | float]],
    x0: torch.Tensor,
    prediction_type: PredictionType,
    generator: torch.Generator | list[torch.Generator] | None = None,
    clip: bool = True,
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bound on -log2 p(x_0) per dimension: every term of it, each with one draw of x_t.

    `x0`: (N, C, H, W) in [-1, 1], of 8-bit pixels. `predict(x_t, t)` gives the denoiser's prediction (N, C, H, W) and
    the fraction of equation 15's log variance, (N, C, H, W) or one number. `clip` the predicted image to [-1, 1].
    With a list of generators, one an image, an image's terms do not depend on its batch. `progress` is called after each
    forward pass with N.
    Returns the bound (N,) and its terms (N, T + 1), whose last is L_T, the prior's. Takes T forward passes.
    """
    terms = []
    for step in range(process.T):
        t = torch.full((len(x0),), step, device=x0.device)
        epsilon = randn_tensor(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        x_t = process.q_sample(x0, t, epsilon)
        prediction, fraction = predict(x_t, t)
        predicted_x0 = process.to_x0(prediction_type, prediction, x_t, t)
        if clip:
            predicted_x0 = predicted_x0.clamp(-1, 1)
        terms.append(vlb_term(process, x0, x_t, t, predicted_x0, log_variance_of(process, t, fraction)))
        progress(len(x0))
    terms.append(prior_term(process, x0))
    terms = torch.stack(terms, dim=1)
    return terms.sum(dim=1), terms


def prior_term(process: DiffusionProcess, x0: torch.Tensor) -> torch.Tensor:
    """L_T = KL( q(x_T | x_0) || N(0, I) ) in bits per dimension, (N,); what a schedule that never reaches noise costs."""
    last = torch.full((len(x0),), process.T - 1, device=x0.device)
    zero = torch.zeros((), dtype=x0.dtype, device=x0.device)
    log_variance = 2 * at(process.noise, last).log()
    return normal_kl(at(process.signal, last) * x0, log_variance, zero, zero).mean(dim=(1, 2, 3)) / math.log(2)
