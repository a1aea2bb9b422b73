"""A recipe: one model, completely described."""

from typing import Any, Self, get_args

from pydantic import model_validator

from ddpm_hf.config.autoencoders import AutoencoderModel, Reconstruction
from ddpm_hf.config.base import Section
from ddpm_hf.config.checks import check_autoencoder, check_denoiser
from ddpm_hf.config.denoisers import Model, UNet2D
from ddpm_hf.config.sections import (
    EMA,
    Autoencoder,
    Condition,
    Data,
    Diffusion,
    Evaluate,
    Grid,
    Hub,
    Run,
    Sample,
    Track,
    Train,
)


class Recipe(Section):
    """A diffusion model, of pixels or of latents."""

    run: Run = Run()
    data: Data
    autoencoder: Autoencoder = Autoencoder()
    model: Model = UNet2D()
    condition: Condition = Condition()
    diffusion: Diffusion = Diffusion()
    train: Train = Train()
    ema: EMA = EMA()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    track: Track = Track()
    hub: Hub = Hub()

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        check_denoiser(self)
        return self


class AutoencoderRecipe(Section):
    """An autoencoder, which a diffusion model of latents needs."""

    run: Run = Run()
    data: Data
    model: AutoencoderModel = AutoencoderModel()
    loss: Reconstruction = Reconstruction()
    train: Train = Train()
    ema: EMA = EMA()
    sample: Grid = Grid()
    track: Track = Track()

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        check_autoencoder(self)
        return self


AnyRecipe = Recipe | AutoencoderRecipe


def section_kinds(section: str, recipe: type[AnyRecipe] = Recipe) -> tuple[type[Section], ...]:
    """The class of a section; of a denoiser's `model`, one for each kind."""
    annotation = recipe.model_fields[section].annotation
    return get_args(annotation) or (annotation,)


def setting_keys(recipe: type[AnyRecipe] = Recipe) -> dict[str, Any]:
    """Every setting's dotted key and its field; where kinds of denoisers share a key, the first's."""
    keys = {}
    for section in recipe.model_fields:
        for kind in section_kinds(section, recipe):
            for name, field in kind.model_fields.items():
                keys.setdefault(f"{section}.{name}", field)
    return keys
