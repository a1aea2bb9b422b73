"""The recipe: one model, completely described.

A YAML file with the sections that `recipes.py` lists, of a diffusion model or of an autoencoder; settings not written keep the defaults there, and any of them can be
given on the command line as `--section.setting value`. Nothing heavy is imported here, so that `--help` and mistakes
answer at once.
"""

from ddpm_hf.config.autoencoders import AutoencoderModel, Reconstruction
from ddpm_hf.config.base import Section
from ddpm_hf.config.files import differences, dump_recipe, load_recipe, parse_value, recipe_kind
from ddpm_hf.config.messages import did_you_mean
from ddpm_hf.config.recipes import AnyRecipe, AutoencoderRecipe, Recipe, section_kinds, setting_keys
from ddpm_hf.config.sections import EMA, Autoencoder, Condition, Data, Diffusion, Evaluate, Grid, Hub, Sample, Train

__all__ = [
    "EMA",
    "AnyRecipe",
    "Autoencoder",
    "AutoencoderModel",
    "AutoencoderRecipe",
    "Condition",
    "Data",
    "Diffusion",
    "Evaluate",
    "Grid",
    "Hub",
    "Recipe",
    "Reconstruction",
    "Sample",
    "Section",
    "Train",
    "did_you_mean",
    "differences",
    "dump_recipe",
    "load_recipe",
    "parse_value",
    "recipe_kind",
    "section_kinds",
    "setting_keys",
]
