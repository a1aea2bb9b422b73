"""What the training scripts share: the dry run, and what to say before the start."""

import json
import os
import sys

from ddpm_hf.config import AnyRecipe, Recipe, dump_recipe


def is_main_process() -> bool:
    """Whether the launcher's first process, before there is an Accelerator."""
    return int(os.environ.get("RANK", 0)) == 0


def dry_run(recipe: AnyRecipe) -> None:
    """Prints the recipe, and as the last line what it will cost."""
    from ddpm_hf.training.estimate import estimate

    costs = estimate(recipe, processes=int(os.environ.get("WORLD_SIZE", 1)))
    if is_main_process():
        print(dump_recipe(recipe))
        print(json.dumps(costs))


def warn(recipe: Recipe) -> None:
    """Says what is allowed but will disappoint."""
    from ddpm_hf.diffusion.schedule import schedule_warning

    if is_main_process() and (warning := schedule_warning(recipe.diffusion)):
        print(warning, file=sys.stderr)
