"""`ddpm-hf prepare`."""

import argparse

from ddpm_hf.autoencoder.pretrained import load_codec
from ddpm_hf.codec import PixelCodec
from ddpm_hf.config import AnyRecipe, Recipe
from ddpm_hf.data.preview import preview
from ddpm_hf.devices import default_device
from ddpm_hf.training.examples import prepare_examples


def prepare(options: argparse.Namespace, recipe: AnyRecipe) -> None:
    """The prepared store, of pixels or of latents, and a picture from it."""
    latents = isinstance(recipe, Recipe) and recipe.autoencoder.source is not None
    codec = load_codec(recipe.autoencoder, recipe.data, default_device()) if latents else PixelCodec()
    examples = prepare_examples(recipe, codec)
    print(f"{len(examples.store):,} images in {examples.store.folder}")
    if (held := examples.validation_store) is not None:
        print(f"{len(held):,} images to validate on in {held.folder}")
    if options.preview:
        preview(examples.training, codec, options.preview)
        print(f"what the model will see: {options.preview}")
