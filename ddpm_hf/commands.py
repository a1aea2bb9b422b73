"""What the `ddpm-hf` commands do once their options are known; everything heavy is imported here."""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ddpm_hf.autoencoder.pretrained import load_codec
from ddpm_hf.codec import PixelCodec
from ddpm_hf.config import AnyRecipe, Recipe
from ddpm_hf.data.preview import preview
from ddpm_hf.diffusion.samplers import build_sampler
from ddpm_hf.errors import UserError
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pictures import columns_for, grid, to_pil
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, draw_images, draw_strip, labels_of, passes
from ddpm_hf.training.examples import prepare_examples


def sample(options: argparse.Namespace) -> None:
    """`ddpm-hf sample`: PNG files, one grid or an .npz, and the film strip."""
    out = Path(options.out)
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".npy", ".zip", ".pt"):
        raise UserError(f"--out: {out} should be a folder, a .png file or an .npz file")
    device = options.device or _device()
    pipe = load_pipeline(options.model)
    sampling = _sampling(pipe, options)
    seeds = range(options.seed, options.seed + options.num_images)
    if out.suffix not in (".png", ".npz") and (others := {p.name for p in out.glob("*.png")} - set(map(_name, seeds))):
        raise UserError(f"--out: {out} already holds {len(others)} other PNG files; name an empty or a new folder")
    forward_passes = passes(pipe, sampling)
    strip_seeds = seeds[:8] if options.strip else []
    try:
        pipe.to(device)
    except RuntimeError as error:
        raise UserError(f"--device: {device} cannot be used: {str(error).splitlines()[0]}") from None
    with tqdm(
        total=(len(seeds) + len(strip_seeds)) * forward_passes,
        unit="image step",
        desc=f"{len(seeds)} images, {forward_passes} steps",
        dynamic_ncols=True,
    ) as bar:
        try:
            images = draw_images(pipe, seeds, options.batch_size, sampling, progress=bar.update)
            if options.strip:
                strip = draw_strip(pipe, strip_seeds, sampling, progress=bar.update)
        except torch.OutOfMemoryError:
            raise UserError(f"out of memory on {device}: lower --batch_size, {options.batch_size}") from None
    print(f"{len(images)} images in {_save(images, seeds, labels_of(pipe, seeds, sampling), out)}")
    if options.strip:
        rows, columns, *shape = strip.shape
        Path(options.strip).parent.mkdir(parents=True, exist_ok=True)
        grid(strip.reshape(rows * columns, *shape), columns).save(options.strip)
        print(f"the denoising film strip in {options.strip}")


def _sampling(pipe: ImageGenerationPipeline, options: argparse.Namespace) -> Sampling:
    """What the options ask for; finds mistakes before the expensive part."""
    build_sampler(options.sampler, pipe.scheduler)
    if options.eta and options.sampler != "ddim":
        raise UserError(f"--eta: is for --sampler ddim; {options.sampler} has no such setting")
    if options.eta > 1:
        raise UserError(f"--eta: {options.eta:g} is more than 1, which adds as much noise as ddpm")
    if pipe.config.num_classes is None:
        for option, given in (
            ("--class", options.class_label is not None),
            ("--guidance_scale", options.guidance_scale != 1),
            ("--guidance_interval", options.guidance_interval is not None),
        ):
            if given:
                raise UserError(f"{option}: this model is unconditional, it knows no classes; leave {option} out")
    if options.guidance_interval is not None:
        if options.guidance_scale == 1:
            raise UserError("--guidance_interval: needs a --guidance_scale; at 1 there is no guidance")
        if not options.guidance_interval[0] < options.guidance_interval[1]:
            raise UserError(f"--guidance_interval: {options.guidance_interval} should be the lower noise level first")
    return Sampling(
        options.sampler,
        options.steps,
        options.eta,
        None if options.class_label is None else _label(pipe, options.class_label),
        options.guidance_scale,
        options.guidance_interval,
    )


def _label(pipe: ImageGenerationPipeline, text: str) -> int:
    """`--class`: a name, or an id where no class has such a name."""
    named = text in (pipe.config.id2label or {}).values()
    try:
        label = pipe.label_id(text if named or not text.isdigit() else int(text))
    except ValueError as error:
        raise UserError(f"--class: {error}") from None
    if label == pipe.config.num_classes:
        print(f"class {label} is the null class: images of no class in particular")
    return label


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def prepare(options: argparse.Namespace, recipe: AnyRecipe) -> None:
    """`ddpm-hf prepare`: the prepared store, of pixels or of latents, and a picture from it."""
    latents = isinstance(recipe, Recipe) and recipe.autoencoder.source is not None
    codec = load_codec(recipe.autoencoder, recipe.data, _device()) if latents else PixelCodec()
    examples = prepare_examples(recipe, codec)
    print(f"{len(examples.store):,} images in {examples.store.folder}")
    if (held := examples.validation_store) is not None:
        print(f"{len(held):,} images to validate on in {held.folder}")
    if options.preview:
        preview(examples.training, codec, options.preview)
        print(f"what the model will see: {options.preview}")


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


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
