"""Train a diffusion model on the latents of an autoencoder, told the images' classes, so that it can be guided.

    accelerate launch train_autoencoder.py --config latent/digits_autoencoder
    accelerate launch train_cfg_latent.py --config latent/digits

The same command again resumes. Images are encoded once, before training. Any AutoencoderKL serves, of the Hub or of
train_autoencoder.py; where the recipe names none, it is stabilityai/sd-vae-ft-mse. Without condition.num_classes the
model is unconditional.
"""

from ddpm_hf.cli.recipes import read_recipe
from ddpm_hf.config import Recipe
from ddpm_hf.errors import UserError, one_line_errors
from ddpm_hf.training.script import dry_run, warn

DEFAULTS = {"autoencoder.source": "stabilityai/sd-vae-ft-mse"}


def main() -> None:
    recipe, is_dry_run = read_recipe(__doc__, defaults=DEFAULTS)
    if recipe.autoencoder.source is None:
        raise UserError("autoencoder.source: null means pixels, which train_unconditional.py trains on")
    warn(recipe)
    if is_dry_run:
        return dry_run(recipe)
    train(recipe)


def train(recipe: Recipe) -> None:
    """Trains to the end, from the newest checkpoint in the recipe's run folder if there is one."""
    # heavy imports only now, so that --help and mistakes in a recipe answer at once
    import torch

    from ddpm_hf.autoencoder.pretrained import load_codec
    from ddpm_hf.build import build_denoiser
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
        scheduler = build_scheduler(recipe.diffusion, clip_sample=False)  # latents have no bounds
        codec = load_codec(recipe.autoencoder, recipe.data, accelerator.device)
        examples = prepare_examples(recipe, codec, run, is_main=accelerator.is_main_process)
        task = Denoising(recipe, denoiser, codec, scheduler, examples, accelerator)
        Session(recipe, task, examples, run, accelerator, push).train()


if __name__ == "__main__":
    with one_line_errors():
        main()
