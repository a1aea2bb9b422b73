"""The noise schedule, owned by Diffusers' scheduler."""

import math

import torch
from diffusers import DDPMScheduler

from ddpm_hf.config import Diffusion


def build_scheduler(diffusion: Diffusion, clip_sample: bool = True) -> DDPMScheduler:
    """The schedule that training uses and that the saved pipeline carries.

    `clip_sample`: sampling bounds the predicted image to [-1, 1]; False of latents, which have no bounds.

    Spacing is set, never left to a default: Diffusers drops unset defaults in memory but not in a saved file,
    so a scheduler made from this one would differ between the two.
    """
    schedule = {"trained_betas": diffusion.trained_betas and list(diffusion.trained_betas)}
    if diffusion.trained_betas is None:
        schedule = _named_schedule(diffusion)
    return DDPMScheduler(
        num_train_timesteps=diffusion.num_train_timesteps,
        **schedule,
        rescale_betas_zero_snr=diffusion.rescale_betas_zero_snr,
        prediction_type=diffusion.prediction_type,
        # a constant exponent is the learned range's formula with a fraction that the pipeline supplies
        variance_type="learned_range" if diffusion.variance_type == "fixed_exponent" else diffusion.variance_type,
        clip_sample=clip_sample,
        clip_sample_range=1.0,
        timestep_spacing="trailing",
    )


def _named_schedule(diffusion: Diffusion) -> dict:
    T = diffusion.num_train_timesteps
    scale = 1000 / T if diffusion.scale_betas else 1.0
    start, end = diffusion.beta_start * scale, diffusion.beta_end * scale
    match diffusion.beta_schedule:
        # these two go as explicit betas, since most of Diffusers' schedulers do not know their names
        case "sigmoid":
            rise = torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid()
            return {"trained_betas": (start + (end - start) * rise).tolist()}
        case "sigmoid_alpha_bar":
            return {"trained_betas": _sigmoid_alpha_bar(T)}
        case "squaredcos_cap_v2":
            return {"beta_schedule": "squaredcos_cap_v2"}
        case name:
            return {"beta_schedule": name, "beta_start": start, "beta_end": end}


def _sigmoid_alpha_bar(T: int, start: float = -3, end: float = 3) -> list[float]:
    """Betas whose alpha bar falls along a sigmoid from `start` to `end` (Jabri et al. 2022, appendix), tau = 1."""

    def alpha_bar(u: float) -> float:
        low, high, here = (1 / (1 + math.exp(-x)) for x in (start, end, start + u * (end - start)))
        return (high - here) / (high - low)

    return [min(1 - alpha_bar((t + 1) / T) / alpha_bar(t / T), 0.999) for t in range(T)]


def remaining_signal(scheduler: DDPMScheduler) -> float:
    """sqrt(alpha_bar_T): what is left of the image at the last timestep, where sampling starts from noise alone."""
    return torch.prod(1 - scheduler.betas.double()).sqrt().item()


def schedule_warning(diffusion: Diffusion) -> str | None:
    """What to tell the user of a schedule that never reaches noise; None where it does."""
    signal = remaining_signal(build_scheduler(diffusion))
    if signal <= 0.05:
        return None
    cures = ["more timesteps", "a larger diffusion.beta_end"]
    if diffusion.beta_schedule in ("linear", "scaled_linear", "sigmoid") and diffusion.trained_betas is None:
        scaled = diffusion.model_copy(update={"scale_betas": True})
        if not diffusion.scale_betas and diffusion.beta_end * 1000 / diffusion.num_train_timesteps < 1:
            cures.insert(0, f"diffusion.scale_betas: true (leaves {remaining_signal(build_scheduler(scaled)):.4f})")
    else:
        cures = ["another schedule"]
    if diffusion.prediction_type != "epsilon":
        cures.append("diffusion.rescale_betas_zero_snr: true (leaves none)")
    return (
        f"warning: diffusion: the last timestep keeps sqrt(alpha_bar_T) = {signal:.2f} of the image, while sampling"
        f" starts from noise alone, so samples will be off; what mends it: {', or '.join(cures)}"
    )
