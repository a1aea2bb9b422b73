"""`ddpm-hf sample`."""

import argparse
from pathlib import Path

import numpy as np

from ddpm_hf.commands.shared import sampling_of
from ddpm_hf.devices import autocast_of, device_of
from ddpm_hf.errors import UserError
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pictures import columns_for, grid, to_pil
from ddpm_hf.sampling import checked, draw, labels_of


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
