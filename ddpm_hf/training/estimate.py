"""What a recipe will cost, without training: sizes are counted on tensors that hold no data."""

import math
import sys

import torch
from diffusers import ModelMixin
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf.build import build_denoiser
from ddpm_hf.config import Recipe
from ddpm_hf.data.prepare import images_in
from ddpm_hf.data.sampler import split_held_out
from ddpm_hf.errors import UnreachableError


def estimate(recipe: Recipe, processes: int) -> dict[str, int | None]:
    """The figures of `--dry_run`: parameters, forward FLOPs an image, images an epoch, steps, bytes a process."""
    train = recipe.train
    with FakeTensorMode(allow_non_fake_inputs=True):
        denoiser = build_denoiser(recipe, load_weights=False)
        parameters = sum(p.numel() for p in denoiser.parameters())
        flops = _forward_flops(denoiser, recipe)
        activations = _activation_bytes(denoiser, recipe)
    images = _images_per_epoch(recipe)
    batch = train.batch_size * train.gradient_accumulation_steps * processes
    return {
        "parameters": parameters,
        "flops_per_image": flops,
        "images_per_epoch": images,
        "optimizer_steps": train.max_steps or (images and math.ceil(train.epochs * images / batch)),
        # weights, gradients, two Adam moments and the EMA, all float32, and what the backward pass keeps
        "memory_bytes": 5 * 4 * parameters + activations,
    }


def _images_per_epoch(recipe: Recipe) -> int | None:
    """Without those held out; None where the Hub alone could tell and cannot be reached."""
    try:
        images = images_in(recipe.data)
    except UnreachableError as error:
        print(f"warning: {error}; so the images are not counted", file=sys.stderr)
        return None
    return len(split_held_out(images, recipe.data.held_out, recipe.run.seed)[0])


def _inputs(recipe: Recipe, batch_size: int) -> dict[str, torch.Tensor]:
    timesteps = torch.zeros(batch_size, dtype=torch.long)
    inputs = {"sample": torch.randn(batch_size, recipe.data.channels, *recipe.data.resolution), "timestep": timesteps}
    return inputs if recipe.condition.num_classes is None else {**inputs, "class_labels": timesteps}


def _forward_flops(denoiser: ModelMixin, recipe: Recipe) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser(**_inputs(recipe, 1))
    return counter.get_total_flops()


def _activation_bytes(denoiser: ModelMixin, recipe: Recipe) -> int:
    if recipe.train.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    weights = {p.untyped_storage()._cdata for p in denoiser.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (tensor, storage.nbytes())  # held, so that no other storage takes its place
        return tensor

    half = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[recipe.train.precision]
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=half, enabled=half != torch.float32),
    ):
        denoiser.train()(**_inputs(recipe, recipe.train.batch_size))
    return sum(size for _, size in kept.values())
