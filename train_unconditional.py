"""Train a diffusion model from a recipe: images to a trained model, and a pipeline that plain Diffusers loads.

    accelerate launch train_unconditional.py --config quickstart
    accelerate launch train_unconditional.py --config my_recipe.yaml --train.learning_rate 1e-4

The same command again resumes. `python train_unconditional.py` and `torchrun` work too. With condition.num_classes in the
recipe the model is told the images' labels, and can be guided. For latents there is train_cfg_latent.py.
"""

from ddpm_hf.cli.recipes import read_recipe
from ddpm_hf.config import Recipe
from ddpm_hf.errors import UserError, one_line_errors
from ddpm_hf.training.script import dry_run, warn


def main() -> None:
    recipe, is_dry_run = read_recipe(__doc__)
    if recipe.autoencoder.source is not None:
        raise UserError("autoencoder.source: latents are trained on by train_cfg_latent.py; here leave it out")
    warn(recipe)
    if is_dry_run:
        return dry_run(recipe)
    train(recipe)


def train(recipe: Recipe) -> None:
    """Trains to the end, from the newest checkpoint in the recipe's run folder if there is one."""
    # heavy imports only now, so that --help and mistakes in a recipe answer at once
    import torch

    from ddpm_hf.build import build_denoiser
    from ddpm_hf.codec import PixelCodec
    from ddpm_hf.diffusion.schedule import build_scheduler
    from ddpm_hf.publishing.background import pushing
    from ddpm_hf.training.accelerator import build_accelerator
    from ddpm_hf.training.denoising import Denoising
    from ddpm_hf.training.examples import prepare_examples
    from ddpm_hf.training.run_folder import open_run
    from ddpm_hf.training.session import Session

    accelerator = build_accelerator(recipe)
    with open_run(recipe, accelerator) as run, pushing(recipe, run, accelerator) as push:
        torch.manual_seed(recipe.run.seed)
        denoiser = build_denoiser(recipe)
        scheduler = build_scheduler(recipe.diffusion)
        codec = PixelCodec()
        examples = prepare_examples(recipe, codec, run)
        task = Denoising(recipe, denoiser, codec, scheduler, examples, accelerator)
        Session(recipe, task, examples, run, accelerator, push).train()


if __name__ == "__main__":
    with one_line_errors():
        main()
