import math

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddpm_hf.build import build_denoiser
from ddpm_hf.config import load_recipe
from ddpm_hf.diffusion.objective import Objective
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.errors import ProcessError, UserError
from ddpm_hf.evaluation.images import Chosen
from ddpm_hf.evaluation.likelihood import bits_per_dimension
from ddpm_hf.evaluation.reference import training_images
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from tests.conftest import TINY


@pytest.fixture
def images(digits_data):
    return Chosen(training_images(digits_data, 0), 5)


def model(**overrides):
    """A recipe, its pipeline with random weights, and the objective that it is trained by."""
    recipe = load_recipe("quickstart", {**TINY, "diffusion.num_train_timesteps": 12, **overrides})
    torch.manual_seed(0)
    denoiser = build_denoiser(recipe).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.02 * torch.randn_like(parameter)  # the last layer too, which begins as zero
    scheduler = build_scheduler(recipe.diffusion)
    classes = recipe.condition.num_classes
    names = None if classes is None else {str(i): str(i) for i in range(classes)}
    pipe = ImageGenerationPipeline(denoiser, scheduler, None, classes, names, recipe.diffusion.variance_exponent)
    return pipe, Objective(recipe.diffusion, recipe.condition, scheduler, torch.device("cpu"))


@pytest.mark.parametrize(
    "overrides",
    [
        {"diffusion.variance_type": "fixed_small"},
        {"diffusion.variance_type": "fixed_large", "diffusion.prediction_type": "v_prediction"},
        {"diffusion.variance_type": "fixed_exponent", "diffusion.variance_exponent": 0.3},
        {"diffusion.variance_type": "learned_range", "diffusion.loss": "hybrid"},
        {"diffusion.prediction_type": "sample", "diffusion.beta_schedule": "squaredcos_cap_v2"},
        {"condition.num_classes": 10},
    ],
    ids=lambda overrides: "-".join(map(str, overrides.values())),
)
def test_the_pipeline_alone_gives_the_bound_that_training_would(overrides, images, state):
    pipe, objective = model(**overrides)
    expected = []
    for i in range(len(images)):
        x0 = images.read([i]).float() / 127.5 - 1
        label, noise = torch.from_numpy(images.labels[[i]]), torch.Generator().manual_seed(i)
        with torch.no_grad():
            expected.append(objective.bits_per_dimension(pipe.unet, x0, label, noise)[0])
    expected = torch.cat(expected).double()
    found = bits_per_dimension(pipe, images, state, batch_size=2)
    assert found["bits_per_dimension"] == pytest.approx(expected.mean().item(), rel=1e-5)
    error = (expected.std() / math.sqrt(len(expected))).item()
    assert found["bits_per_dimension_standard_error"] == pytest.approx(error, rel=1e-4)


def test_it_does_not_depend_on_the_batch_nor_on_who_measures_which_image(images, state, monkeypatch):
    pipe, _ = model()
    whole = bits_per_dimension(pipe, images, state, batch_size=64)
    from ddpm_hf.evaluation import likelihood
    from tests.evaluation.test_extraction import OneOf

    shares = []
    monkeypatch.setattr(likelihood, "gather_to_main", lambda share, state: shares.append(share))
    monkeypatch.setattr(likelihood, "from_main", lambda item, state: item)
    for index in range(2):
        bits_per_dimension(pipe, images, OneOf(index, 2), batch_size=1)
    assert sorted([*shares[0], *shares[1]]) == list(range(5))
    mean = sum([*shares[0].values(), *shares[1].values()]) / 5
    assert mean == pytest.approx(whole["bits_per_dimension"], rel=1e-5)


def test_a_model_that_predicts_the_image_exactly_pays_for_the_prior_and_the_last_step_alone(images, state):
    """By the closed form: no information is lost where the posterior is matched, but for L_0 and L_T."""

    class Knows(torch.nn.Module):
        dtype = torch.float32

        def forward(self, x_t, t):
            from types import SimpleNamespace

            return SimpleNamespace(sample=self.x0)

    pipe, _ = model(**{"diffusion.prediction_type": "sample", "diffusion.variance_type": "fixed_small"})
    knows = Knows()
    knows.x0 = images.read(range(5)).float() / 127.5 - 1
    stand_in = type("Pipe", (), {})()
    stand_in.unet, stand_in.vae, stand_in.scheduler, stand_in.config = knows, None, pipe.scheduler, pipe.config
    found = bits_per_dimension(stand_in, images, state)
    betas = pipe.scheduler.betas.double()
    signal = torch.prod(1 - betas).sqrt()
    x0 = knows.x0.double()
    # L_T: KL(N(signal x0, 1 - signal^2) || N(0, 1)), in bits
    prior = 0.5 * ((signal * x0) ** 2 - signal**2 - torch.log(1 - signal**2))
    # L_0: the mass within half a level, whose width is that of the first posterior's, beta tilde of the second step
    alpha_bar = torch.cumprod(1 - betas, 0)
    deviation = (betas[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])).sqrt()
    mass = torch.special.ndtr(1 / 255 / deviation) * 2 - 1
    edge = torch.special.ndtr(1 / 255 / deviation)
    last = -torch.where(x0.abs() > 0.999, edge, mass).log()
    expected = ((prior + last).mean() / math.log(2)).item()
    assert found["bits_per_dimension"] == pytest.approx(expected, rel=1e-3)


def test_one_image_has_no_standard_error(images, state):
    pipe, _ = model()
    assert list(bits_per_dimension(pipe, Chosen(images, 1), state)) == ["bits_per_dimension"]


def test_labels_are_told_where_they_are_the_model_s_classes(images, state):
    pipe, _ = model(**{"condition.num_classes": 10})
    told = []
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *args, class_labels, **options: (
        told.append(class_labels),
        forward(*args, class_labels=class_labels, **options),
    )[1]
    bits_per_dimension(pipe, images, state)
    assert (told[0] == torch.from_numpy(images.labels)).all()
    told.clear()
    images.class_names = [f"other {i}" for i in range(10)]
    bits_per_dimension(pipe, images, state)
    assert (told[0] == 10).all()  # the null class


def test_models_without_a_bound(images, state, tiny_unet):
    pipe = ImageGenerationPipeline(tiny_unet, DDPMScheduler(12, variance_type="learned"))
    with pytest.raises(UserError, match="is not known for a reverse step of variance_type learned"):
        bits_per_dimension(pipe, images, state)
    latent = ImageGenerationPipeline(tiny_unet, DDPMScheduler(12), UNet2DModel.from_config(tiny_unet.config))
    with pytest.raises(UserError, match="is of 8-bit pixels; this model works on latents"):
        bits_per_dimension(latent, images, state)


def test_a_mistake_that_one_process_meets_is_its_own(images, state, monkeypatch):
    def broken(indices):
        raise UserError("0001.png: is not an image")

    pipe, _ = model()
    monkeypatch.setattr(images, "read", broken)
    with pytest.raises(ProcessError, match=r"0001\.png: is not an image"):
        bits_per_dimension(pipe, images, state)
