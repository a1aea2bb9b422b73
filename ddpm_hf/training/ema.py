"""Exponential moving average of the weights."""

import copy

import torch
from torch import nn


class EMA:
    """A shadow model whose parameters follow the trained ones, in float32.

    It is a model of its own, so nobody ever swaps weights in or out of the one being trained.
    Buffers are the initial model's. The decay follows from the step, so a resumed run needs the weights alone.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool, update_every: int) -> None:
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.decay, self.warmup, self.update_every = decay, warmup, update_every
        self._shadow = list(self.model.parameters())

    def decay_at(self, update: int) -> float:
        """The decay of the `update`-th update, counted from 1."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, accept: torch.Tensor) -> None:
        """After optimizer step `step`, counted from 1: shadow += (1 - decay) (weights - shadow).

        `accept`: 1 where the step was taken, 0 where it was skipped; a tensor on the device, so that nobody waits for it.
        """
        if step % self.update_every:
            return
        weight = (1 - self.decay_at(step // self.update_every)) * accept
        change = torch._foreach_sub(list(model.parameters()), self._shadow)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(self._shadow, change)
