"""Autoencoders that are trained already: found, checked against the images, loaded."""

import os
import warnings
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, ModelMixin
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch._subclasses.fake_tensor import FakeTensorMode

from ddpm_hf.codec import AutoencoderCodec
from ddpm_hf.config import Autoencoder, Data
from ddpm_hf.config.files import recipe_path
from ddpm_hf.errors import UserError


def load_codec(settings: Autoencoder, data: Data, device: torch.device) -> AutoencoderCodec:
    """The autoencoder with its weights, in float32: in half precision many of them overflow."""
    latent_shape(settings, data)  # finds mistakes before the weights are fetched
    kind, _, where = _find(settings.source)
    try:
        vae = kind.from_pretrained(_place(settings.source), torch_dtype=torch.float32, **where)
    except (OSError, ValueError) as error:
        raise UserError(f"autoencoder.source: {settings.source}: {str(error).strip().splitlines()[0]}") from None
    if settings.tiling:
        if not hasattr(vae, "enable_tiling"):
            raise UserError(f"autoencoder.tiling: a {kind.__name__} cannot work in tiles; leave it out")
        vae.enable_tiling()
    return AutoencoderCodec(vae.to(device), settings.gray_as_rgb, settings.batch_size)


def latent_shape(settings: Autoencoder, data: Data) -> tuple[int, int, int]:
    """(c, h, w) of the latents, from the autoencoder's config alone. Raises `UserError` where the images do not fit it."""
    kind, config, _ = _find(settings.source)
    takes = config.get("in_channels", 3)
    if settings.gray_as_rgb and takes != 3:
        raise UserError(f"autoencoder.gray_as_rgb: {settings.source} takes {takes} channels, not 3; leave it out")
    if takes != (3 if settings.gray_as_rgb else data.channels):
        mend = (
            "set autoencoder.gray_as_rgb: true" if (takes, data.channels) == (3, 1) else f"set data.channels: {takes}"
        )
        raise UserError(
            f"autoencoder.source: {settings.source} takes {takes}-channel images, data.channels is {data.channels}; {mend}"
        )
    with FakeTensorMode():  # shapes alone: any kind of autoencoder tells its own
        vae = kind.from_config(config)
        try:
            factor = 256 // _encode(vae, takes, 256, 256).shape[-2]
        except (RuntimeError, ValueError, TypeError, AttributeError):  # such as those of videos
            raise UserError(
                f"autoencoder.source: {settings.source} holds a {kind.__name__}, which does not encode images"
            ) from None
        if any(side % factor for side in data.resolution):
            near = sorted({factor * n for side in data.resolution for n in (side // factor, -(-side // factor)) if n})
            size = "x".join(map(str, data.resolution))
            raise UserError(
                f"data.resolution: {size} cannot be made {factor} times smaller by the autoencoder {settings.source};"
                f" {' or '.join(map(str, near))} can"
            )
        return tuple(_encode(vae, takes, *data.resolution).shape[1:])


def _encode(vae: ModelMixin, channels: int, height: int, width: int) -> torch.Tensor:
    return AutoencoderCodec(vae).encode(torch.zeros(1, channels, height, width, dtype=torch.uint8))


def _place(source: str) -> str:
    return os.path.expanduser(source) if source.startswith("~") else source


def _find(source: str) -> tuple[type[ModelMixin], dict, dict]:
    """Class and config of an autoencoder, in a folder or repository of its own or in a pipeline's, and where in it."""
    for where in ({}, {"subfolder": "vae"}):
        try:
            with warnings.catch_warnings(action="ignore"):
                config = AutoencoderKL.load_config(_place(source), **where)
        except (OSError, ValueError) as error:
            problem = str(error).strip().splitlines()[0]
            continue
        kind = getattr(diffusers, config.get("_class_name", ""), None)
        if not (hasattr(kind, "encode") and hasattr(kind, "decode")):
            raise UserError(
                f"autoencoder.source: {source} holds a {config.get('_class_name')}, which is no autoencoder of Diffusers"
            )
        return kind, config, where
    if Path(_place(source), "autoencoder", "config.json").is_file():
        raise UserError(
            f"autoencoder.source: {source} is a run folder; its autoencoder is {Path(source, 'autoencoder')}"
        )
    if Path(_place(source)).exists() or source.startswith(("runs/", ".", "/", "~")):
        missing = "no such folder" if not Path(_place(source)).exists() else "holds no autoencoder (config.json)"
        raise UserError(
            f"autoencoder.source: {source}: {missing}; train it with train_autoencoder.py{_recipe_for(source)}, or name a"
            " Hub id such as stabilityai/sd-vae-ft-mse"
        )
    why = "the Hub's client is offline, by HF_HUB_OFFLINE" if HF_HUB_OFFLINE else problem
    raise UserError(
        f"autoencoder.source: {source} is no folder here and cannot be had from the Hub ({why}); check the id, or name a"
        " folder that holds it"
    )


def _recipe_for(source: str) -> str:
    """How to name the recipe that comes with the package, where one makes this folder."""
    recipe = f"latent/{Path(source).parent.name}"
    try:
        recipe_path(recipe)
    except UserError:
        return ""
    return f" --config {recipe}"
