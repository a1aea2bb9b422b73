"""What commands share that draw with a model: its device, and the options of `cli.sampling`."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch

from ddpm_hf.diffusion.samplers import build_sampler, num_steps
from ddpm_hf.errors import UserError
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling


def default_device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def device_of(option: str | torch.device | None) -> torch.device:
    """What `--device` names, the default without it. Raises `UserError` where this machine has no such device."""
    if option is None:
        return default_device()
    try:
        return torch.zeros(1, device=option).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UserError(f"--device: {option} cannot be used: {str(error).splitlines()[0]}") from None


def autocast_of(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """What `--precision` asks for: the context that the denoiser runs in."""
    if precision == "no":
        return nullcontext
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision: fp16 needs a GPU; bf16 runs on processors too")
    return partial(torch.autocast, device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def sampling_of(options: argparse.Namespace) -> Sampling:
    """What the options of `cli.sampling` ask for."""
    of_class, interval = options.class_label, options.guidance_interval
    return Sampling(options.sampler, options.steps, options.eta, of_class, options.guidance_scale, interval)


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
