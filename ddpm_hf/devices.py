"""Where a model runs, and in which precision: what `--device` and `--precision` mean."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from ddpm_hf.errors import UserError


def default_device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def device_of(option: str | torch.device | None) -> torch.device:
    """What `--device` names, the default without it. Raises `UserError` where this machine has no such device."""
    if option is None:
        return default_device()
    # a number is an accelerator's, as torch takes it; "meta" has no memory
    if isinstance(option, bool) or not isinstance(option, str | int | torch.device) or str(option).startswith("meta"):
        raise UserError(f"--device: {option} should be a device that computes, such as cpu or cuda:1")
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
