"""Train an autoencoder from a recipe: for images that no public one fits, or where the Hub cannot be reached.

    accelerate launch train_autoencoder.py --config latent/digits_autoencoder
    accelerate launch train_autoencoder.py --config my_recipe.yaml --loss.discriminator_start 20000

The same command again resumes. It leaves runs/<name>/autoencoder, a Diffusers AutoencoderKL, for autoencoder.source of
a recipe that train_cfg_latent.py trains.
"""

import sys

from ddpm_hf.cli.recipes import read_recipe
from ddpm_hf.config import AutoencoderRecipe
from ddpm_hf.errors import one_line_errors
from ddpm_hf.training.script import dry_run, is_main_process


def main() -> None:
    recipe, is_dry_run = read_recipe(__doc__, kind=AutoencoderRecipe)
    if is_dry_run:
        return dry_run(_with_perceptual_loss(recipe))
    train(recipe)


def train(recipe: AutoencoderRecipe) -> None:
    """Trains to the end, from the newest checkpoint in the recipe's run folder if there is one."""
    # heavy imports only now, so that --help and mistakes in a recipe answer at once
    import torch
    from accelerate.utils import broadcast_object_list

    from ddpm_hf.build import build_autoencoder
    from ddpm_hf.codec import PixelCodec
    from ddpm_hf.training.accelerator import build_accelerator
    from ddpm_hf.training.autoencoding import Autoencoding
    from ddpm_hf.training.examples import prepare_examples
    from ddpm_hf.training.run_folder import open_run
    from ddpm_hf.training.session import Session

    recipe = _with_perceptual_loss(recipe)
    accelerator = build_accelerator(recipe)
    [recipe] = broadcast_object_list([recipe])  # what is at hand on the first machine decides
    with open_run(recipe, accelerator) as run:
        torch.manual_seed(recipe.run.seed)
        trainee = build_autoencoder(recipe)
        examples = prepare_examples(recipe, PixelCodec(), run)
        task = Autoencoding(recipe, trainee, examples, accelerator)
        Session(recipe, task, examples, run, accelerator).train()


def _with_perceptual_loss(recipe: AutoencoderRecipe) -> AutoencoderRecipe:
    """With `auto` resolved; says what it came to."""
    from ddpm_hf.autoencoder.perceptual import choose_perceptual

    recipe, why = choose_perceptual(recipe)
    if is_main_process():
        print(why, file=sys.stderr)
    return recipe


if __name__ == "__main__":
    with one_line_errors():
        main()
