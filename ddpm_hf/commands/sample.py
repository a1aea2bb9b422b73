"""`ddpm-hf sample`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ddpm_hf.commands.shared import autocast_of, checked, device_of, sampling_of
from ddpm_hf.errors import UserError
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pictures import columns_for, grid, to_pil
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, draw_images, draw_strip, labels_of, passes


def sample(options: argparse.Namespace) -> None:
    """PNG files, one grid or an .npz, and the film strip."""
    out = Path(options.out)
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".npy", ".zip", ".pt"):
        raise UserError(f"--out: {out} should be a folder, a .png file or an .npz file")
    device = device_of(options.device)
    autocast = autocast_of(options.precision, device)
    pipe = load_pipeline(options.model)
    sampling = checked(pipe, sampling_of(options))
    seeds = range(options.seed, options.seed + options.num_images)
    if out.suffix not in (".png", ".npz") and (others := {p.name for p in out.glob("*.png")} - set(map(_name, seeds))):
        raise UserError(f"--out: {out} already holds {len(others)} other PNG files; name an empty or a new folder")
    strip_seeds = seeds[:8] if options.strip else []
    with autocast():
        images, strip = draw(pipe.to(device), seeds, options.batch_size, sampling, strip_seeds)
    print(f"{len(images)} images in {_save(images, seeds, labels_of(pipe, seeds, sampling), out)}")
    if options.strip:
        rows, columns, *shape = strip.shape
        Path(options.strip).parent.mkdir(parents=True, exist_ok=True)
        grid(strip.reshape(rows * columns, *shape), columns).save(options.strip)
        print(f"the denoising film strip in {options.strip}")


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


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def _save(images: np.ndarray, seeds: range, labels: list[int] | None, out: Path) -> Path:
    if out.suffix not in (".png", ".npz"):
        out.mkdir(parents=True, exist_ok=True)
        for seed, image in zip(seeds, images, strict=True):
            to_pil(image).save(out / _name(seed))
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        in_turn = None if labels is None or len(set(labels)) == 1 else max(labels) + 1
        grid(images, columns_for(in_turn, len(images))).save(out)
    else:
        classes = {} if labels is None else {"labels": np.array(labels)}
        np.savez_compressed(out, images=images.transpose(0, 2, 3, 1), seeds=np.array(seeds), **classes)
    return out
