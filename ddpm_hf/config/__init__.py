"""The recipe: one model, completely described.

A YAML file with the sections of `sections.py`; settings not written keep the defaults there, and any of them can be
given on the command line as `--section.setting value`. Nothing heavy is imported here, so that `--help` and mistakes
answer at once.
"""

from ddpm_hf.config.files import differences, dump_recipe, load_recipe, parse_value
from ddpm_hf.config.messages import did_you_mean
from ddpm_hf.config.sections import Data, Diffusion, Recipe, Train, setting_keys

__all__ = [
    "Data",
    "Diffusion",
    "Recipe",
    "Train",
    "did_you_mean",
    "differences",
    "dump_recipe",
    "load_recipe",
    "parse_value",
    "setting_keys",
]
