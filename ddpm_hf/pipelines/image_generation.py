"""Images from noise: the reverse process, DDPM (Ho et al. 2020) algorithm 2 and what succeeded it.

Stands alone: torch and diffusers only.
"""

from collections.abc import Callable
from fractions import Fraction

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor


class ImageGenerationPipeline(DiffusionPipeline):
    """Draws images with a denoiser and a scheduler."""

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 1000,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, torch.Tensor, dict], None] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """
        `generator`: one, or a list with one an image; then an image does not depend on its batch.
        `latents`: the noise to start from, (N, C, H, W); drawn if not given.
        `output_type`: "pil", "np" (N, H, W, C) or "pt" (N, C, H, W), floats in [0, 1].
        `callback_on_step_end(pipe, i, t, {"latents": x})` sees every state of the reverse process.
        """
        size = self.unet.config.sample_size
        shape = (batch_size, self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators for a batch of {batch_size}; give one, or one an image")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type {output_type!r} is not one of pil, np, pt")
        # 1. x_T ~ N(0, I); noise stays float32, whatever the denoiser's precision
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)}; this model and batch need {shape}")
        x = latents.to(self.device, torch.float32)

        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        timesteps = self.scheduler.timesteps.tolist()
        noise = {} if isinstance(self.scheduler, DDIMScheduler) else {"generator": generator}
        for i, t in enumerate(self.progress_bar(timesteps)):
            # 2. epsilon_theta(x_t, t)
            prediction = self.unet(x.to(self.unet.dtype), t).sample.float()
            # 3. x_t to its predecessor; the last of them is x_0, where Diffusers' DDPM would still add noise if t > 0
            last = i + 1 == len(timesteps)
            if isinstance(self.scheduler, DDIMScheduler):
                _step_back_to(self.scheduler, t, -1 if last else timesteps[i + 1])
            step = self.scheduler.step(prediction, t, x, **noise)
            x = step.pred_original_sample if last else step.prev_sample
            if callback_on_step_end is not None:
                callback_on_step_end(self, i, t, {"latents": x})

        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _step_back_to(scheduler: DDIMScheduler, t: int, previous: int) -> None:
    """Diffusers' DDIM steps back by T // num_inference_steps, which reaches the next timestep only where the
    number of steps divides T. As a fraction, T / (t - previous), it does so for any number."""
    scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, t - previous)
