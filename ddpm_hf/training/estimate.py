"""What a recipe will cost, without training: sizes are counted on tensors that hold no data."""

import math
import sys

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf.build import build_autoencoder, build_denoiser, sample_shape
from ddpm_hf.config import AnyRecipe, Recipe
from ddpm_hf.data.prepare import images_in
from ddpm_hf.data.sampler import split_held_out
from ddpm_hf.data.sources import open_source
from ddpm_hf.errors import UnreachableError
from ddpm_hf.training.examples import check_sources


def estimate(recipe: AnyRecipe, processes: int) -> dict[str, int | None]:
    """The figures of `--dry_run`: parameters, forward FLOPs an image, images an epoch, steps, bytes a process."""
    train = recipe.train
    denoising = isinstance(recipe, Recipe)
    shape = sample_shape(recipe) if denoising else (recipe.data.channels, *recipe.data.resolution)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_denoiser(recipe, load_weights=False) if denoising else build_autoencoder(recipe)
        parameters = sum(p.numel() for p in model.parameters())
        flops = _forward_flops(model, recipe, shape)
        activations = _activation_bytes(model, recipe, shape)
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


def _images_per_epoch(recipe: AnyRecipe) -> int | None:
    """Without those held out; None where the Hub alone could tell and cannot be reached."""
    try:
        check_sources(recipe, open_source(recipe.data))
        images = images_in(recipe.data)
    except UnreachableError as error:
        print(f"warning: {error}; so the images are not counted", file=sys.stderr)
        return None
    return len(split_held_out(images, recipe.data.held_out, recipe.run.seed)[0])


def _inputs(recipe: AnyRecipe, shape: tuple[int, int, int], batch_size: int) -> dict[str, torch.Tensor]:
    sample, timesteps = torch.randn(batch_size, *shape), torch.zeros(batch_size, dtype=torch.long)
    if not isinstance(recipe, Recipe):
        return {"images": sample} if recipe.loss.discriminator_start is None else {"images": sample, "adversarial": 1.0}
    inputs = {"sample": sample, "timestep": timesteps}
    return inputs if recipe.condition.num_classes is None else {**inputs, "class_labels": timesteps}


def _forward_flops(model: nn.Module, recipe: AnyRecipe, shape: tuple[int, int, int]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**_inputs(recipe, shape, 1))
    return counter.get_total_flops()


def _activation_bytes(model: nn.Module, recipe: AnyRecipe, shape: tuple[int, int, int]) -> int:
    if recipe.train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
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
        model.train()(**_inputs(recipe, shape, recipe.train.batch_size))
    return sum(size for _, size in kept.values())
