"""The grid of pictures that a recipe's `sample` section asks for: during training, and of a published model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ddpm_hf.config import Recipe
from ddpm_hf.pictures import class_grid, grid
from ddpm_hf.sampling import Sampling

Draw = Callable[[list[int], Sampling], np.ndarray]  # images of these seeds, uint8 (N, C, H, W)


@dataclass(frozen=True)
class Layout:
    """What is drawn: `seeds` once a guidance scale; of a conditional model a row a class, `columns` images a scale."""

    seeds: list[int]
    scales: tuple[float, ...] = (1.0,)
    classes: tuple[int, ...] | None = None
    columns: int | None = None


def layout_of(recipe: Recipe) -> Layout:
    sample, num_classes = recipe.sample, recipe.condition.num_classes
    if num_classes is None:
        return Layout(list(range(sample.seed, sample.seed + sample.num_images)))
    scales = sample.grid_guidance_scales or tuple(dict.fromkeys((1.0, sample.guidance_scale)))
    rows = min(num_classes, 20, max(1, sample.num_images // len(scales)))
    columns = max(1, sample.num_images // (rows * len(scales)))
    classes = np.linspace(0, num_classes - 1, rows).round().astype(int).tolist()
    # an image's class is its seed modulo the number of classes
    first = -(-sample.seed // num_classes) * num_classes
    seeds = [first + k * num_classes + label for label in classes for k in range(columns)]
    return Layout(seeds, scales, tuple(classes), columns)


def sampling_of_recipe(recipe: Recipe, guidance_scale: float | None = None) -> Sampling:
    """How the recipe's `sample` section draws; with its own guidance scale if none is given."""
    sample = recipe.sample
    scale = sample.guidance_scale if guidance_scale is None else guidance_scale
    interval = None if scale == 1 else sample.guidance_interval
    decoded = recipe.autoencoder.batch_size
    return Sampling(sample.sampler, sample.steps, sample.eta, None, scale, interval, decoded)


def sample_grid(recipe: Recipe, class_names: Sequence[str] | None, draw: Draw) -> Image.Image:
    """A grid of the same seeds each time; of a conditional model, a row a class, and guidance scales side by side."""
    layout = layout_of(recipe)
    drawn = [draw(layout.seeds, sampling_of_recipe(recipe, scale)) for scale in layout.scales]
    if layout.classes is None:
        return grid(drawn[0])
    images = np.stack(drawn, axis=1)  # uint8 (rows * columns, scales, C, H, W)
    images = images.reshape(len(layout.classes), layout.columns, *images.shape[1:]).swapaxes(1, 2)
    return class_grid(images, layout.scales, [class_names[label] for label in layout.classes])
