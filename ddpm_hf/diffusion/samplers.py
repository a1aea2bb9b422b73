"""From a sampler's name to a Diffusers scheduler on the schedule that the model was trained with."""

from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin

from ddpm_hf.errors import UserError

SAMPLERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}


def build_sampler(name: str, trained: SchedulerMixin) -> SchedulerMixin:
    """A fresh scheduler (they hold state) with the betas, prediction type and clipping of `trained`."""
    if name not in SAMPLERS:
        raise UserError(f"{name!r} is no sampler; choose from {', '.join(SAMPLERS)}")
    return SAMPLERS[name].from_config(trained.config, timestep_spacing="trailing")


def num_steps(name: str, steps: int | None, trained: SchedulerMixin) -> int:
    """The number of denoising steps: as asked, else every timestep for ddpm and 50 for ddim."""
    T = trained.config.num_train_timesteps
    if steps is None:
        return T if name == "ddpm" else min(50, T)
    if not 1 <= steps <= T:
        raise UserError(f"{steps} denoising steps cannot be taken; this model has timesteps for 1 to {T}")
    return steps
