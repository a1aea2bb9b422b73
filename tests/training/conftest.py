import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def build_session():
    """What a training script does between the recipe and `Session.train`."""

    def build(recipe):
        from ddpm_hf.autoencoder.pretrained import load_codec
        from ddpm_hf.build import build_autoencoder, build_denoiser
        from ddpm_hf.codec import PixelCodec
        from ddpm_hf.config import AutoencoderRecipe
        from ddpm_hf.diffusion.schedule import build_scheduler
        from ddpm_hf.training.accelerator import build_accelerator
        from ddpm_hf.training.autoencoding import Autoencoding
        from ddpm_hf.training.denoising import Denoising
        from ddpm_hf.training.examples import prepare_examples
        from ddpm_hf.training.run_folder import open_run
        from ddpm_hf.training.session import Session

        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = build_accelerator(recipe)
        run = open_run(recipe, accelerator)
        try:
            torch.manual_seed(recipe.run.seed)
            if isinstance(recipe, AutoencoderRecipe):
                trainee = build_autoencoder(recipe)
                examples = prepare_examples(recipe, PixelCodec(), progress=False)
                return Session(recipe, Autoencoding(recipe, trainee, examples, accelerator), examples, run, accelerator)
            denoiser = build_denoiser(recipe)
            latents = recipe.autoencoder.source is not None
            codec = load_codec(recipe.autoencoder, recipe.data, accelerator.device) if latents else PixelCodec()
            scheduler = build_scheduler(recipe.diffusion, clip_sample=not latents)
            examples = prepare_examples(recipe, codec, progress=False)
            task = Denoising(recipe, denoiser, codec, scheduler, examples, accelerator)
            return Session(recipe, task, examples, run, accelerator)
        except BaseException:
            run.release()
            raise

    return build
