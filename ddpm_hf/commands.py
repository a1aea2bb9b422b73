"""What the `ddpm-hf` commands do once their options are known; everything heavy is imported here."""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ddpm_hf.config import Recipe
from ddpm_hf.data.dataset import TrainingImages
from ddpm_hf.data.prepare import prepare as prepare_store
from ddpm_hf.data.preview import preview
from ddpm_hf.diffusion.samplers import num_steps
from ddpm_hf.errors import UserError
from ddpm_hf.pictures import grid, to_pil
from ddpm_hf.sampling import build_pipeline, draw_images, draw_strip, load_model


def sample(options: argparse.Namespace) -> None:
    """`ddpm-hf sample`: PNG files, one grid or an .npz, and the film strip."""
    out = Path(options.out)
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".npy", ".zip", ".pt"):
        raise UserError(f"--out: {out} should be a folder, a .png file or an .npz file")
    device = options.device or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    denoiser, trained = load_model(options.model)
    if options.class_label is not None:
        raise UserError(f"--class: this model is unconditional, it knows no {options.class_label}; leave --class out")
    seeds = range(options.seed, options.seed + options.num_images)
    if out.suffix not in (".png", ".npz") and (others := {p.name for p in out.glob("*.png")} - set(map(_name, seeds))):
        raise UserError(f"--out: {out} already holds {len(others)} other PNG files; name an empty or a new folder")
    pipe = build_pipeline(denoiser, trained, options.sampler)
    steps = num_steps(options.sampler, options.steps, trained)
    try:
        pipe.to(device)
    except RuntimeError as error:
        raise UserError(f"--device: {device} cannot be used: {str(error).splitlines()[0]}") from None
    with tqdm(
        total=len(seeds) * steps, unit="image step", desc=f"{len(seeds)} images, {steps} steps", dynamic_ncols=True
    ) as bar:
        try:
            images = draw_images(pipe, seeds, options.batch_size, options.sampler, steps, progress=bar.update)
        except torch.OutOfMemoryError:
            raise UserError(f"out of memory on {device}: lower --batch_size, {options.batch_size}") from None
    print(f"{len(images)} images in {_save(images, seeds, out)}")
    if options.strip:
        strip = draw_strip(pipe, seeds[: min(len(seeds), 8)], options.sampler, steps)
        rows, columns, *shape = strip.shape
        Path(options.strip).parent.mkdir(parents=True, exist_ok=True)
        grid(strip.reshape(rows * columns, *shape), columns).save(options.strip)
        print(f"the denoising film strip in {options.strip}")


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def prepare(options: argparse.Namespace, recipe: Recipe) -> None:
    """`ddpm-hf prepare`: the prepared store, and a picture from it."""
    store = prepare_store(recipe.data)
    print(f"{len(store):,} images in {store.folder}")
    if options.preview:
        preview(TrainingImages(store, recipe.data), options.preview)
        print(f"what the model will see: {options.preview}")


def _save(images: np.ndarray, seeds: range, out: Path) -> Path:
    if out.suffix not in (".png", ".npz"):
        out.mkdir(parents=True, exist_ok=True)
        for seed, image in zip(seeds, images, strict=True):
            to_pil(image).save(out / _name(seed))
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        grid(images).save(out)
    else:
        np.savez_compressed(out, images=images.transpose(0, 2, 3, 1), seeds=np.array(seeds))
    return out
