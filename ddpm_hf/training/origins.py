"""Where a recipe's parts came from, noted while they are there to be seen."""

import os

from ddpm_hf.config import AnyRecipe

# settings that take a place on this machine, or a name of something elsewhere
KEYS = (
    "autoencoder.source",
    "model.pretrained",
    "data.classes",
    "evaluate.extractor",
    "evaluate.extractor_weights",
    "evaluate.reference",
)


def found_here(recipe: AnyRecipe) -> list[str]:
    """Those of a recipe's settings that name a file or folder of this machine, as seen from the current folder."""
    found = []
    for key in KEYS:
        section, _, name = key.partition(".")
        text = getattr(getattr(recipe, section, None), name, None)
        if isinstance(text, str) and os.path.lexists(os.path.expanduser(text)):
            found.append(key)
    return found
