"""What only a GPU can show; skipped where there is none."""

import pytest
import torch

from ddpm_hf.diffusion.samplers import SAMPLERS
from ddpm_hf.loading import load_pipeline
from ddpm_hf.sampling import Sampling, draw_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "no"])
def test_it_trains_saves_and_draws_with_every_sampler(precision, tiny_recipe, build_session):
    recipe = tiny_recipe(
        **{
            "train.precision": precision,
            "condition.num_classes": 10,
            "sample.guidance_scale": 2.0,
            "diffusion.num_train_timesteps": 10,
            "diffusion.variance_type": "learned_range",
            "diffusion.loss": "vlb",
            "diffusion.timestep_sampling": "importance",
        }
    )
    session = build_session(recipe)
    session.train()
    pipe = load_pipeline(str(session.run.path)).to("cuda")
    for sampler in SAMPLERS:
        assert draw_images(pipe, range(2), 2, Sampling(sampler, 3, guidance_scale=2.0)).shape == (2, 1, 8, 8)


QUIET = {"data.held_out": 0.0, "train.max_steps": 6, "train.checkpoint_every": 6, "track.log_every": 6}


def test_no_step_waits_for_the_gpu(tiny_recipe, build_session):
    """Between logged steps: whatever makes the host wait raises here."""
    settings = {
        "condition.num_classes": 10,
        "diffusion.loss": "vlb",
        "diffusion.timestep_sampling": "importance",
    }
    session = build_session(tiny_recipe(**QUIET, **settings))
    session.task.objective = without_waiting(session.task.objective)
    session.train()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "no"])
def test_no_step_on_latents_waits_either(precision, stored, tiny_latent, build_session):
    recipe = tiny_latent(**QUIET, **{"train.precision": precision, "autoencoder.store_latents": stored})
    session = build_session(recipe)
    session.task.objective = without_waiting(session.task.objective)
    session.task.codec.encode = without_waiting(session.task.codec.encode)
    session.train()
    pipe = load_pipeline(str(session.run.path)).to("cuda")
    assert draw_images(pipe, range(2), 2, Sampling("ddim", 3, guidance_scale=2.0)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_no_step_of_an_autoencoder_waits_either(precision, tiny_autoencoder, build_session):
    recipe = tiny_autoencoder(**QUIET, **{"train.precision": precision, "loss.discriminator_start": 2})
    session = build_session(recipe)
    session.task.objective = without_waiting(session.task.objective)
    session.train()


def without_waiting(function):
    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched
