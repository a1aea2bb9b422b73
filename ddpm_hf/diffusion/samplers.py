"""From a sampler's name to a Diffusers scheduler on the schedule that the model was trained with."""

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from ddpm_hf.errors import UserError

SAMPLERS = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,  # second order, multistep: 2M
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,  # two forward passes a step, but for the last
}


def build_sampler(name: str, trained: SchedulerMixin) -> SchedulerMixin:
    """A fresh scheduler (they hold state) with the betas and prediction type of `trained`; the pipeline sees to clipping."""
    if name not in SAMPLERS:
        raise UserError(f"{name!r} is no sampler; choose from {', '.join(SAMPLERS)}")
    config = {**trained.config, "timestep_spacing": "trailing"}
    config.pop("_use_default_values", None)  # in memory alone: what a saved model says must mean the same
    for key in ("use_karras_sigmas", "sigma_max"):
        config.pop(key, None)  # heun's, where `trained` is one
    if name != "ddpm":
        config.pop("variance_type", None)  # their steps have no variance to choose; DPM-Solver would cut channels
    if name == "heun":
        config |= _for_heun(trained)
    return SAMPLERS[name].from_config(config)


def _for_heun(trained: SchedulerMixin) -> dict:
    """Heun's method integrates over sigma, so its error grows with the ratio of neighbouring noise levels: evenly spaced
    timesteps end a cosine schedule with one of a thousand. Karras et al. (2022) space the levels for it, equation 5.
    No level is above 160, where the linear schedule ends: a cosine's 20,000 would take most of few steps."""
    config = {"use_karras_sigmas": True}
    alpha_bar = (1 - trained.betas.double()).cumprod(dim=0)
    if trained.config.get("rescale_betas_zero_snr"):
        # it has no such setting, and divides by sqrt(alpha_bar): as the other solvers do, nearly zero instead of zero
        alpha_bar[-1] = min(2**-24, alpha_bar[-2].item() / 2)
        betas = trained.betas.double()
        betas[-1] = 1 - alpha_bar[-1] / alpha_bar[-2]
        config["trained_betas"] = betas.tolist()
    return config | {"sigma_max": min(160.0, ((1 - alpha_bar[-1]) / alpha_bar[-1]).sqrt().item())}


def num_steps(name: str, steps: int | None, trained: SchedulerMixin) -> int:
    """The number of denoising steps: as asked, else every timestep for ddpm and 50 for the others."""
    T = trained.config.num_train_timesteps
    if steps is None:
        return T if name == "ddpm" else min(50, T)
    if not 1 <= steps <= T:
        raise UserError(f"{steps} denoising steps cannot be taken; this model has timesteps for 1 to {T}")
    return steps
