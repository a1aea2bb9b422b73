"""Where drawing begins: at the schedule's end, but at no level that turns a noise prediction's error into the image."""

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from ddpm_hf.config.sections import Diffusion
from ddpm_hf.diffusion.samplers import SAMPLERS, build_sampler
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline


class Wrong(ModelMixin, ConfigMixin):
    """Of data that are normal with variance 1 as x_t is, the best prediction of the noise is sqrt(1 - alpha_bar) x_t. This
    is wrong by 2%."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 4) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))
        self.sigma = (1 - build_scheduler(COSINE).alphas_cumprod.double()).sqrt()  # (T,)

    def forward(self, x, t):
        low, part = int(t), float(t) % 1  # heun's timesteps have fractions
        sigma = (1 - part) * self.sigma[low] + part * self.sigma[min(low + 1, 999)]
        error = torch.randn(x.shape, generator=torch.Generator().manual_seed(low))
        return UNet2DOutput(sample=(sigma * x + 0.02 * error).float())


COSINE = Diffusion(beta_schedule="squaredcos_cap_v2")


def pipeline(sampler, diffusion=COSINE, clip_sample=False):
    trained = build_scheduler(diffusion, clip_sample=clip_sample)
    pipe = ImageGenerationPipeline(Wrong(), build_sampler(sampler, trained))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def levels(sampler, steps, diffusion=COSINE, clip_sample=False):
    """Timesteps, and sigma at the first of them."""
    scheduler = pipeline(sampler, diffusion, clip_sample)._prepare_scheduler(steps)
    timesteps, alpha_bar = scheduler.timesteps, scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "sigmas"):
        assert len(scheduler.sigmas) == len(timesteps) + 1
        return timesteps.tolist(), scheduler.sigmas[0].item()
    first = alpha_bar[timesteps[0]]
    return timesteps.tolist(), ((1 - first) / first).sqrt().item()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [20, 300])
def test_a_cosine_schedule_is_not_drawn_from_the_error_of_its_noisiest_level(sampler, steps):
    drawn = pipeline(sampler)(8, num_inference_steps=steps, output_type="latent").images
    assert 0.8 < drawn.std() < 1.2  # of 1; from sigma 20,000 on, 20 steps of DDIM gave 30


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver++", "unipc"])
def test_the_first_timestep_is_the_noisiest_of_at_most_200(sampler):
    timesteps, first = levels(sampler, 20)
    alpha_bar = build_scheduler(COSINE).alphas_cumprod.double()
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    assert timesteps[:2] == [int((sigma <= 200).nonzero()[-1]), 949] and len(timesteps) == 20
    assert first == pytest.approx(sigma[timesteps[0]].item(), rel=1e-5) and 150 < first <= 200
    many, _ = levels(sampler, 1000)
    assert many == list(range(timesteps[0], -1, -1))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver++", "unipc"])
@pytest.mark.parametrize(
    ("diffusion", "clip_sample"),
    [
        (COSINE, True),  # a clipped x_0 has no such error
        (Diffusion(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"), False),  # nor one that v gives
        (Diffusion(beta_schedule="linear", beta_start=2e-4), False),  # ends at 161
    ],
)
def test_other_models_are_drawn_from_the_schedules_end(sampler, diffusion, clip_sample):
    timesteps, _ = levels(sampler, 20, diffusion, clip_sample)
    assert timesteps[:2] == [999, 949] and len(timesteps) == 20
