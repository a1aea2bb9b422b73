"""Train a diffusion model from a recipe: images to a trained model, and a pipeline that plain Diffusers loads.

    accelerate launch train_unconditional.py --config quickstart
    accelerate launch train_unconditional.py --config my_recipe.yaml --train.learning_rate 1e-4

The same command again resumes. `python train_unconditional.py` and `torchrun` work too. With condition.num_classes in the
recipe the model is told the images' labels, and can be guided.
"""

import json
import os
import sys

from ddpm_hf.cli import read_recipe
from ddpm_hf.config import Recipe, dump_recipe
from ddpm_hf.errors import one_line_errors


def main() -> None:
    recipe, dry_run = read_recipe(__doc__)
    is_main = int(os.environ.get("RANK", 0)) == 0
    if dry_run:
        from ddpm_hf.training.estimate import estimate

        costs = estimate(recipe, processes=int(os.environ.get("WORLD_SIZE", 1)))
        if is_main:
            warn(recipe)
            print(dump_recipe(recipe))
            print(json.dumps(costs))
        return

    # heavy imports only now, so that --help and mistakes in a recipe answer at once
    import torch

    from ddpm_hf.build import build_denoiser
    from ddpm_hf.data.prepare import prepare, validation_data
    from ddpm_hf.diffusion.schedule import build_scheduler
    from ddpm_hf.training.accelerator import build_accelerator
    from ddpm_hf.training.session import Session

    if is_main:
        warn(recipe)
    accelerator = build_accelerator(recipe)
    torch.manual_seed(recipe.run.seed)
    denoiser = build_denoiser(recipe)
    scheduler = build_scheduler(recipe.diffusion)
    images = prepare(recipe.data)  # of several processes one prepares, the others wait for it
    validation = validation_data(recipe.data)
    validation_images = validation and prepare(validation)
    Session(recipe, images, denoiser, scheduler, accelerator, validation_images).train()


def warn(recipe: Recipe) -> None:
    """Says what is allowed but will disappoint."""
    from ddpm_hf.diffusion.schedule import schedule_warning

    if warning := schedule_warning(recipe.diffusion):
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main()
