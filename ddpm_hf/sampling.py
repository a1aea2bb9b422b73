"""Images from seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from ddpm_hf.diffusion.samplers import build_sampler, num_steps
from ddpm_hf.errors import UserError
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    `steps`: None for the sampler's own number. `class_label`: an id or a name; None gives image i of a conditional
    model the class `seed mod num_classes`. The rest as in the pipeline's call.
    """

    sampler: str = "ddpm"
    steps: int | None = None
    eta: float = 0.0
    class_label: int | str | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    decode_batch_size: int = 16


def checked(pipe: ImageGenerationPipeline, asked: Sampling) -> Sampling:
    """Finds mistakes before the expensive part; the class as its id."""
    build_sampler(asked.sampler, pipe.scheduler)
    num_steps(asked.sampler, asked.steps, pipe.scheduler)
    if asked.eta and asked.sampler != "ddim":
        raise UserError(f"--eta: is for --sampler ddim; {asked.sampler} has no such setting")
    if asked.eta > 1:
        raise UserError(f"--eta: {asked.eta:g} is more than 1, which adds as much noise as ddpm")
    if pipe.config.num_classes is None:
        for option, given in (
            ("--class", asked.class_label is not None),
            ("--guidance_scale", asked.guidance_scale != 1),
            ("--guidance_interval", asked.guidance_interval is not None),
        ):
            if given:
                raise UserError(f"{option}: this model is unconditional, it knows no classes; leave {option} out")
    if asked.guidance_interval is not None:
        if asked.guidance_scale == 1:
            raise UserError("--guidance_interval: needs a --guidance_scale; at 1 there is no guidance")
        if not asked.guidance_interval[0] < asked.guidance_interval[1]:
            raise UserError(f"--guidance_interval: {asked.guidance_interval} should be the lower noise level first")
    if asked.class_label is None:
        return asked
    return replace(asked, class_label=_label(pipe, asked.class_label))


def _label(pipe: ImageGenerationPipeline, given: int | str) -> int:
    """`--class`: a name, or an id where no class has such a name."""
    named = given in (pipe.config.id2label or {}).values()
    is_id = isinstance(given, str) and given.isdigit() and not named
    try:
        label = pipe.label_id(int(given) if is_id else given)
    except ValueError as error:
        raise UserError(f"--class: {error}") from None
    if label == pipe.config.num_classes:
        print(f"class {label} is the null class: images of no class in particular")
    return label


def draw_images(
    pipe: ImageGenerationPipeline,
    seeds: Sequence[int],
    batch_size: int,
    sampling: Sampling,
    progress: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """One image a seed, uint8 (N, C, H, W), in the order of `seeds`, rounded as a saved PNG would be.

    An image follows from its seed alone: it has a generator of its own, on the CPU whatever the device.
    `progress` is called after each forward pass of the denoiser with the number of images that took it.
    """
    starts = range(0, len(seeds), batch_size)
    batches = (draw_batch(pipe, seeds[start : start + batch_size], sampling, progress) for start in starts)
    return np.concatenate([images.cpu().numpy() for images in batches])


def draw(
    pipe: ImageGenerationPipeline,
    seeds: Sequence[int],
    batch_size: int,
    sampling: Sampling,
    strip_seeds: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images, uint8 (N, C, H, W), and the film strip of `strip_seeds`, under one progress bar."""
    forward_passes, strip = passes(pipe, sampling), None
    with tqdm(
        total=(len(seeds) + len(strip_seeds)) * forward_passes,
        unit="image step",
        desc=f"{len(seeds)} images, {forward_passes} steps",
        dynamic_ncols=True,
    ) as bar:
        try:
            images = draw_images(pipe, seeds, batch_size, sampling, progress=bar.update)
            if strip_seeds:
                strip = draw_strip(pipe, strip_seeds, sampling, progress=bar.update)
        except torch.OutOfMemoryError:
            raise UserError(f"out of memory on {pipe.device}: lower --batch_size, {batch_size}") from None
    return images, strip


def draw_batch(
    pipe: ImageGenerationPipeline,
    seeds: Sequence[int],
    sampling: Sampling,
    progress: Callable[[int], None] = lambda images: None,
    watch: Callable[[torch.Tensor], None] = lambda state: None,
) -> torch.Tensor:
    """`draw_images` of one batch: uint8 (N, C, H, W) on the pipeline's device.

    `watch` sees each state (N, C, H, W) as the denoiser does; `pipe.decode` makes images of it. What it or `progress`
    raises ends the drawing there.
    """

    def report(_pipe, _i: int, _t, tensors: dict) -> None:
        progress(len(seeds))
        watch(tensors["latents"])

    images = _draw(pipe, seeds, sampling, callback_on_step_end=report)
    return (images * 255).round().to(torch.uint8)


def passes(pipe: ImageGenerationPipeline, sampling: Sampling) -> int:
    """Forward passes that an image takes, a guided one counted once."""
    return len(_drawing(pipe, sampling).timesteps(num_steps(sampling.sampler, sampling.steps, pipe.scheduler)))


def labels_of(pipe: ImageGenerationPipeline, seeds: Sequence[int], sampling: Sampling) -> list[int] | None:
    """The class of each seed's image, None for an unconditional model."""
    if pipe.config.num_classes is None:
        return None
    if sampling.class_label is None:
        return [seed % pipe.config.num_classes for seed in seeds]
    return [pipe.label_id(sampling.class_label)] * len(seeds)


def draw_strip(
    pipe: ImageGenerationPipeline,
    seeds: Sequence[int],
    sampling: Sampling,
    columns: int = 10,
    progress: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """The denoising film strip: uint8 (N, columns, C, H, W), from pure noise to the image, one row a seed.

    Of latents each state is decoded, noise too.
    """
    steps = passes(pipe, sampling)
    columns = min(columns, steps + 1)
    shown = np.linspace(0, steps, columns).round().astype(int)
    size = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    # drawn here as the pipeline would, so that the strip can begin with it
    generators = _generators(seeds)
    noise = torch.stack([torch.randn(1, *shape, generator=g)[0] for g in generators])
    states = [noise]

    def keep(_pipe, i: int, _t, tensors: dict) -> None:
        if i + 1 in shown[:-1]:
            states.append(tensors["latents"].cpu())
        progress(len(seeds))

    last = _draw(pipe, seeds, sampling, generator=generators, latents=noise, callback_on_step_end=keep)
    images = [pipe.decode(state, "pt").cpu() for state in states[: columns - 1]]
    strip = torch.stack([*images, last.cpu()], dim=1)  # float32 (N, columns, C, H, W) in [0, 1]
    return (strip * 255).round().to(torch.uint8).numpy()


def _draw(pipe: ImageGenerationPipeline, seeds: Sequence[int], sampling: Sampling, **options) -> torch.Tensor:
    """Images, float32 (N, C, H, W) in [0, 1]; the pipeline itself is left as it was."""
    drawing = _drawing(pipe, sampling)
    call = {
        "batch_size": len(seeds),
        "class_labels": labels_of(pipe, seeds, sampling),
        "guidance_scale": sampling.guidance_scale,
        "guidance_interval": sampling.guidance_interval,
        "num_inference_steps": num_steps(sampling.sampler, sampling.steps, pipe.scheduler),
        "generator": _generators(seeds),
        "eta": sampling.eta,
        "decode_batch_size": sampling.decode_batch_size,
        "output_type": "pt",
    }
    images = drawing(**(call | options)).images
    if not images.isfinite().all():
        raise UserError(
            f"the model's images are not finite with {sampling.sampler} and {call['num_inference_steps']} steps"
        )
    return images


def _drawing(pipe: ImageGenerationPipeline, sampling: Sampling) -> ImageGenerationPipeline:
    """The same parts with another scheduler."""
    drawing = ImageGenerationPipeline(
        pipe.unet,
        build_sampler(sampling.sampler, pipe.scheduler),
        pipe.vae,
        pipe.config.num_classes,
        pipe.config.id2label,
        pipe.config.variance_exponent,
        pipe.config.image_channels,
    )
    drawing.set_progress_bar_config(disable=True)
    return drawing


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
