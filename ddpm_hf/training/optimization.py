"""Optimizer and learning rate."""

import math

import torch
from torch import nn

from ddpm_hf.config import Train


def build_optimizer(train: Train, model: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW. Fused on every device: fewer launches, and the fused step can be called off on the device."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
    return kind(
        model.parameters(),
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        fused=True,
    )


def learning_rate(train: Train, step: int, max_steps: int, steps_per_epoch: float) -> float:
    """The rate of optimizer step `step`, counted from 0; a function of the step alone, so nothing of it is saved."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / max(1, max_steps - train.warmup_steps)
    match train.learning_rate_schedule:
        case "constant":
            factor = 1.0
        case "linear":
            factor = 1 - progress
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            unit = steps_per_epoch if train.epochs is not None else 1
            factor = train.learning_rate_drop_factor ** sum(step >= drop * unit for drop in train.learning_rate_drops)
    return train.learning_rate * factor
