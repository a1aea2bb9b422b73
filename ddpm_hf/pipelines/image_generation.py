"""Images from noise: the reverse process, DDPM (Ho et al. 2020) algorithm 2 and what succeeded it.

Pixels and latents, unconditional and class-conditional, any of Diffusers' schedulers. Stands alone: torch and diffusers.
"""

import inspect
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.utils.torch_utils import randn_tensor


class ImageGenerationPipeline(DiffusionPipeline):
    """Draws images with a denoiser and a scheduler, and an autoencoder where the denoiser works on latents.

    `num_classes`: of a class-conditional denoiser, whose null class has this id; None for an unconditional one.
    `id2label`: the classes' names by their ids as text, {"0": "cat"}.
    `variance_exponent`: of DDPM's reverse step, between its bounds: 0 is the posterior's variance, 1 is beta (Ho &
    Salimans 2022); for a denoiser that does not learn it, with a scheduler of variance type "learned_range".
    `vae`: any of Diffusers' image autoencoders; latents are (z - shift_factor) * scaling_factor of its own config.
    `image_channels`: 1, what a three-channel autoencoder decodes is averaged to one channel.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]  # noqa: RUF012  Diffusers' own form

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        vae: ModelMixin | None = None,
        num_classes: int | None = None,
        id2label: dict[str, str] | None = None,
        variance_exponent: float | None = None,
        image_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(
            num_classes=num_classes,
            id2label=id2label,
            variance_exponent=variance_exponent,
            image_channels=image_channels,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        eta: float = 0.0,
        decode_batch_size: int = 16,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], None] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """
        `class_labels`: an id or a name for all, or a list with one an image; None draws from the null class.
        `guidance_scale`: s of uncond + s (cond - uncond); at 1, which is off, and at 0, the null class alone, there is
        no second prediction. The papers' weight is w = s - 1.
        `guidance_interval`: two noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar) between which alone to guide
        (Kynkäänniemi et al. 2024); all if None.
        `num_inference_steps`: every timestep for DDPM, 50 for other schedulers, if not given.
        `generator`: one, or a list with one an image; then an image does not depend on its batch.
        `latents`: the noise to start from, (N, C, H, W); drawn if not given.
        `output_type`: "pil", "np" (N, H, W, C) or "pt" (N, C, H, W), floats in [0, 1]; "latent", what the denoiser made,
        for `decode`, (N, C, H, W).
        `eta`: noise of DDIM's steps, 0 to 1.
        `decode_batch_size`: images decoded at once; an autoencoder needs far more memory than the denoiser.
        `callback_on_step_end(pipe, i, t, {"latents": x})` sees every state of the reverse process, (N, C, H, W), as the
        denoiser sees it.
        """
        if batch_size == 1 and isinstance(class_labels, (list, tuple)):
            batch_size = len(class_labels)
        shape = (batch_size, self.unet.config.in_channels, *self._sample_size())
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators for a batch of {batch_size}; give one, or one an image")
        _check_output(output_type, ("pil", "np", "pt", "latent"), decode_batch_size)
        labels = self._label_ids(class_labels, batch_size)  # int64 (N,), None for an unconditional denoiser
        if class_labels is None and guidance_scale != 1:
            raise ValueError(f"guidance_scale {guidance_scale} needs class_labels to guide towards")
        low, high = guidance_interval or (0, float("inf"))
        if not 0 <= low < high:
            raise ValueError(f"guidance_interval {guidance_interval} should be two noise levels, the lower one first")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta {eta} is not between 0 and 1")

        scheduler = self._prepare_scheduler(num_inference_steps)
        # the scheduler's stay on the CPU, as numbers: steps would wait for a device's; the denoiser's are a tensor, since
        # UNet2DModel would cut a number's fraction, which some samplers have
        timesteps, on_device = scheduler.timesteps.tolist(), scheduler.timesteps.to(self._execution_device)
        # 1. x_T ~ N(0, I); noise stays float32, whatever the denoiser's precision
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)}; this model and batch need {shape}")
        x = latents.to(self._execution_device, torch.float32) * scheduler.init_noise_sigma

        # a clipped x_0 goes with the noise that x_t then holds, as in Nichol & Dhariwal's code; Diffusers' DDIM asks for it
        options = {"generator": generator, "eta": eta, "use_clipped_model_output": True}
        accepted = inspect.signature(scheduler.step).parameters
        options = {name: value for name, value in options.items() if name in accepted}
        for i, t in enumerate(self.progress_bar(timesteps)):
            # 2. what the denoiser predicts of x_t: noise, x_0 or v
            scale = guidance_scale if low <= _noise_level(scheduler, i, t) <= high else 1.0
            prediction = self._predict(scheduler.scale_model_input(x, t), on_device[i], labels, scale)
            prediction = self._with_variance(prediction, scheduler)
            # 3. x_t to its predecessor; the last of them is x_0, where Diffusers' DDPM would still add noise if t > 0
            last = i + 1 == len(timesteps)
            if isinstance(scheduler, DDIMScheduler):
                _step_back_to(scheduler, t, -1 if last else timesteps[i + 1])
            step = scheduler.step(prediction, t, x, **options)
            x = step.pred_original_sample if last and isinstance(scheduler, _ENDS_IN_X0) else step.prev_sample
            if callback_on_step_end is not None:
                seen = x if last else scheduler.scale_model_input(x, timesteps[i + 1])
                callback_on_step_end(self, i, t, {"latents": seen})

        images = x if output_type == "latent" else self.decode(x, output_type, decode_batch_size)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sample_size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _label_ids(self, class_labels, batch_size: int) -> torch.Tensor | None:
        num_classes = self.config.num_classes
        if num_classes is None:
            if class_labels is not None:
                raise ValueError("class_labels given to an unconditional model; leave them out")
            return None
        if class_labels is None:
            class_labels = num_classes  # the null class
        if hasattr(class_labels, "tolist"):  # a tensor's or an array's numbers
            class_labels = class_labels.tolist()
        if isinstance(class_labels, (int, str)):
            class_labels = [class_labels] * batch_size
        class_labels = [self.label_id(label) for label in class_labels]
        if len(class_labels) != batch_size:
            raise ValueError(
                f"{len(class_labels)} class_labels for a batch of {batch_size}; give a list with one an image, or a bare one for all"
            )
        return torch.tensor(class_labels, device=self._execution_device)

    def label_id(self, label: int | str) -> int:
        """The id of a class from its id or its name."""
        num_classes, names = self.config.num_classes, self.config.id2label or {}
        if isinstance(label, str):
            found = [int(i) for i, name in names.items() if name == label]
            if not found:
                known = ", ".join(map(repr, list(names.values())[:20])) or f"ids 0 to {num_classes - 1}"
                raise ValueError(f"no class is named {label!r}; this model knows {known}")
            return found[0]
        label = label.item() if hasattr(label, "item") else label  # of an array or a tensor
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label <= num_classes:
            raise ValueError(
                f"class {label!r} is not one of the ids 0 to {num_classes - 1}, nor {num_classes}, the null class"
            )
        return label

    def timesteps(self, num_inference_steps: int | None = None) -> list[float]:
        """Those that the denoiser sees, in order, one a forward pass."""
        return self._prepare_scheduler(num_inference_steps).timesteps.tolist()

    def _prepare_scheduler(self, num_inference_steps: int | None) -> SchedulerMixin:
        """A scheduler of this call's own, since they hold state, with its timesteps set."""
        config, known = dict(self.scheduler.config), inspect.signature(type(self.scheduler)).parameters
        config.pop("_use_default_values", None)  # from_config would drop what is set here
        if not isinstance(self.scheduler, DDPMScheduler):
            config["variance_type"] = None  # the halves are split here; DPM-Solver would cut channels once more
        if config.get("clip_sample") and "clip_sample" not in known and config.get("clip_sample_range", 1) == 1:
            config["thresholding"] = True  # the solvers' way to clip x_0: with a maximum of 1, the plain one
        scheduler = type(self.scheduler).from_config(config)
        if num_inference_steps is None:
            T = scheduler.config.num_train_timesteps
            num_inference_steps = T if isinstance(scheduler, DDPMScheduler) else min(50, T)
        scheduler.set_timesteps(num_inference_steps)
        within = scheduler.timesteps >= 0
        if not within.all():  # Diffusers' spacing may round to a timestep too many, -1: of 100 timesteps 97, for one
            scheduler.timesteps = scheduler.timesteps[within]
            if hasattr(scheduler, "sigmas"):
                scheduler.sigmas = torch.cat([scheduler.sigmas[:-1][within], scheduler.sigmas[-1:]])
        clips = scheduler.config.get("clip_sample") or scheduler.config.get("thresholding")
        if scheduler.config.prediction_type == "epsilon" and not clips:
            _begin_lower(scheduler)
        return scheduler

    def _predict(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, scale: float) -> torch.Tensor:
        """The denoiser's output, float32 (N, C or 2C, H, W); guided (Ho & Salimans 2022, equation 6) but at 0 and 1."""
        x = x.to(self.unet.dtype)
        if labels is None:
            return self.unet(x, t).sample.float()
        if scale == 1:
            return self.unet(x, t, class_labels=labels).sample.float()
        null = torch.full_like(labels, self.config.num_classes)
        if scale == 0:
            return self.unet(x, t, class_labels=null).sample.float()
        both = self.unet(torch.cat([x, x]), t, class_labels=torch.cat([null, labels])).sample.float()
        unconditional, conditional = both.chunk(2)
        channels = x.shape[1]  # what follows them, a learned variance, is the conditional one's
        guided = unconditional[:, :channels] + scale * (conditional[:, :channels] - unconditional[:, :channels])
        return torch.cat([guided, conditional[:, channels:]], dim=1)

    def _with_variance(self, prediction: torch.Tensor, scheduler: SchedulerMixin) -> torch.Tensor:
        """The prediction with as many channels as the scheduler's step takes."""
        channels = self.unet.config.in_channels
        if not (isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type == "learned_range"):
            return prediction[:, :channels]  # only DDPM's step has a use for a variance
        if self.config.variance_exponent is not None:
            return torch.cat([prediction, torch.full_like(prediction, 2 * self.config.variance_exponent - 1)], dim=1)
        return prediction

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, output_type: str = "pil", decode_batch_size: int = 16):
        """Images of what the denoiser made, such as `output_type="latent"` gives: float (N, C, H, W), scaled and shifted.

        Of a model without an autoencoder these are pixels in [-1, 1]. The rest as in the pipeline's call.
        """
        _check_output(output_type, ("pil", "np", "pt"), decode_batch_size)
        latents = latents.to(self._execution_device, torch.float32)
        images = torch.cat([self._to_images(some) for some in latents.split(decode_batch_size)])
        self.maybe_free_model_hooks()
        if output_type == "pt":
            return images
        images = images.cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(images) if output_type == "pil" else images

    def _to_images(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 (N, C, H, W) in [0, 1]."""
        if self.vae is not None:
            scale = getattr(self.vae.config, "scaling_factor", None) or 1.0
            shift = getattr(self.vae.config, "shift_factor", None) or 0.0
            with torch.autocast(x.device.type, enabled=False):  # in half precision many autoencoders overflow
                x = self.vae.decode((x / scale + shift).to(self.vae.dtype)).sample.float()
        if self.config.image_channels == 1:
            x = x.mean(dim=1, keepdim=True)
        return (x / 2 + 0.5).clamp(0, 1)


_MOST_NOISE = 200.0  # sigma; linear schedules end a little below
_ENDS_IN_X0 = (DDPMScheduler, DDIMScheduler)  # the solvers end there by themselves, at a noise level of 0


def _check_output(output_type: str, known: Sequence[str], decode_batch_size: int) -> None:
    if output_type not in known:
        raise ValueError(f"output_type {output_type!r} is not one of {', '.join(known)}")
    if decode_batch_size < 1:
        raise ValueError(f"decode_batch_size {decode_batch_size} should be 1 or more")


def _noise_level(scheduler: SchedulerMixin, i: int, t: int | float) -> float:
    """sigma = sqrt((1 - alpha_bar) / alpha_bar) at the i-th of the timesteps, t."""
    if hasattr(scheduler, "sigmas"):
        return float(scheduler.sigmas[i])
    alpha_bar = float(scheduler.alphas_cumprod[int(t)])
    return ((1 - alpha_bar) / alpha_bar) ** 0.5 if alpha_bar else float("inf")


def _begin_lower(scheduler: SchedulerMixin) -> None:
    """The error of a noise prediction is sigma times as large in x_0: of a cosine schedule's 20,000 nothing else is left,
    unless x_0 is clipped. Begins at the noisiest level of at most 200 instead, where x_t is as good as noise too."""
    timesteps = scheduler.timesteps
    if _noise_level(scheduler, 0, timesteps[0].item()) <= _MOST_NOISE:
        return
    alpha_bar = scheduler.alphas_cumprod.double().cpu()
    levels = ((1 - alpha_bar) / alpha_bar).sqrt()  # (T,)
    first = int((levels <= _MOST_NOISE).nonzero()[-1])
    later = timesteps < first
    scheduler.timesteps = torch.cat([timesteps.new_tensor([first]), timesteps[later]])
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas  # one more than timesteps, the last of them after the last step
        scheduler.sigmas = torch.cat([levels[first : first + 1].to(sigmas), sigmas[:-1][later], sigmas[-1:]])


def _step_back_to(scheduler: DDIMScheduler, t: int, previous: int) -> None:
    """Diffusers' DDIM steps back by T // num_inference_steps, which reaches the next timestep only where the
    number of steps divides T. As a fraction, T / (t - previous), it does so for any number."""
    scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, t - previous)
