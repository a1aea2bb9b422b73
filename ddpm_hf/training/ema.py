"""Exponential moving average of the weights."""

import copy

import torch
from torch import nn

from ddpm_hf.config import EMA as Settings


class EMA:
    """A shadow model whose parameters follow the trained ones, in float32.

    It is a model of its own, so nobody ever swaps weights in or out of the one being trained.
    Buffers are the initial model's. The decay follows from the step, so a resumed run needs the weights alone.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.settings = settings
        self._shadow = list(self.model.parameters())

    def decay_at(self, step: int) -> float:
        """The decay of the update after optimizer step `step`, counted from 1."""
        settings = self.settings
        if step <= settings.start_step:
            return 0.0
        if not settings.warmup:
            return settings.decay
        if settings.warmup_power is not None:  # by steps, as ema-pytorch and Diffusers' EMAModel have it
            return min(settings.decay, 1 - (step - settings.start_step) ** -settings.warmup_power)
        update = (step - settings.start_step) // settings.update_every
        return min(settings.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, accept: torch.Tensor) -> None:
        """After optimizer step `step`, counted from 1: shadow += (1 - decay) (weights - shadow).

        `accept`: 1 where the step was taken, 0 where it was skipped; a tensor on the device, so that nobody waits for it.
        """
        if step % self.settings.update_every:
            return
        weight = (1 - self.decay_at(step)) * accept
        change = torch._foreach_sub(list(model.parameters()), self._shadow)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(self._shadow, change)
