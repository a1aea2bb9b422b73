"""The noise schedule, owned by Diffusers' scheduler."""

from diffusers import DDPMScheduler

from ddpm_hf.config import Diffusion


def build_scheduler(diffusion: Diffusion) -> DDPMScheduler:
    """The schedule that training uses and that the saved pipeline carries.

    Spacing is set, never left to a default: Diffusers drops unset defaults in memory but not in a saved file,
    so a scheduler made from this one would differ between the two.
    """
    return DDPMScheduler(
        num_train_timesteps=diffusion.num_train_timesteps,
        beta_schedule=diffusion.beta_schedule,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        prediction_type=diffusion.prediction_type,
        variance_type=diffusion.variance_type,
        clip_sample=True,
        clip_sample_range=1.0,
        timestep_spacing="trailing",
    )
