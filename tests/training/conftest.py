import pytest
import torch
from accelerate.state import AcceleratorState

from ddpm_hf.config import AutoencoderRecipe, load_recipe
from tests.conftest import write_autoencoder

TINY_LATENT = {
    "model.block_out_channels": [16, 32],
    "model.layers_per_block": 1,
    "model.norm_num_groups": 8,
    "diffusion.num_train_timesteps": 50,
    "train.max_steps": 8,
    "train.batch_size": 8,
    "train.warmup_steps": 2,
    "train.checkpoint_every": 4,
    "train.learning_rate_schedule": "constant",
    "sample.steps": 4,
    "sample.num_images": 6,
    "track.log_every": 1,
    "track.trackers": [],
}

TINY_AUTOENCODER = {
    "model.block_out_channels": [8, 16],
    "model.norm_num_groups": 4,
    "train.max_steps": 8,
    "train.warmup_steps": 2,
    "train.checkpoint_every": 4,
    "train.learning_rate_schedule": "constant",
    "train.batch_size": 16,
    "loss.perceptual": "l2",
    "sample.num_images": 8,
    "track.log_every": 2,
    "track.trackers": [],
}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def held_while_it_trains(session):
    """As `with open_run(...)` of a training script."""
    train = session.train

    def train_and_release():
        with session.run:
            train()

    session.train = train_and_release
    return session


@pytest.fixture
def build_session():
    """What a training script does between the recipe and `Session.train`."""

    def build(recipe):
        from ddpm_hf.autoencoder.pretrained import load_codec
        from ddpm_hf.build import build_autoencoder, build_denoiser
        from ddpm_hf.codec import PixelCodec
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
                examples = prepare_examples(recipe, PixelCodec(), run, progress=False)
                task = Autoencoding(recipe, trainee, examples, accelerator)
                return held_while_it_trains(Session(recipe, task, examples, run, accelerator))
            denoiser = build_denoiser(recipe)
            latents = recipe.autoencoder.source is not None
            codec = load_codec(recipe.autoencoder, recipe.data, accelerator.device) if latents else PixelCodec()
            scheduler = build_scheduler(recipe.diffusion, clip_sample=not latents)
            examples = prepare_examples(recipe, codec, run, progress=False)
            task = Denoising(recipe, denoiser, codec, scheduler, examples, accelerator)
            return held_while_it_trains(Session(recipe, task, examples, run, accelerator))
        except BaseException:
            run.release()
            raise

    return build


@pytest.fixture
def tiny_latent(tmp_path):
    """A function from overrides to a recipe for a small model of digits' latents."""
    autoencoder = write_autoencoder(tmp_path / "autoencoder")

    def make(**overrides):
        folders = {"run.output_dir": str(tmp_path / "runs"), "data.store": str(tmp_path / "prepared")}
        settings = {**TINY_LATENT, **folders, "autoencoder.source": autoencoder, **overrides}
        return load_recipe("latent/digits", settings)

    return make


@pytest.fixture
def tiny_autoencoder(tmp_path):
    def make(**overrides):
        folders = {"run.output_dir": str(tmp_path / "runs"), "data.store": str(tmp_path / "prepared")}
        return load_recipe("latent/digits_autoencoder", {**TINY_AUTOENCODER, **folders, **overrides}, AutoencoderRecipe)

    return make
