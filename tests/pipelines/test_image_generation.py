"""The reverse process against DDPM's and DDIM's equations, written again here from the papers."""

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

from ddpm_hf.config import Diffusion
from ddpm_hf.diffusion.samplers import SAMPLERS, build_sampler, num_steps
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.errors import UserError
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, draw_images, draw_strip


def trained(T=50, **settings):
    return build_scheduler(Diffusion(num_train_timesteps=T, **settings))


def pipeline(unet, scheduler, sampler):
    pipe = ImageGenerationPipeline(unet.eval(), build_sampler(sampler, scheduler))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def states(unet, sampler, scheduler, steps, seed=3):
    """x_T and every state after it."""
    pipe = pipeline(unet, scheduler, sampler)
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    seen = [noise]
    pipe(
        2,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        num_inference_steps=steps,
        latents=noise,
        output_type="pt",
        callback_on_step_end=lambda p, i, t, tensors: seen.append(tensors["latents"]),
    )
    return seen


def trailing(T, steps):
    return [round(T - i * T / steps) - 1 for i in range(steps)]


@pytest.mark.parametrize("steps", [1, 5, 7, 30, 50])
def test_ddim_steps_to_the_next_timestep_whether_or_not_the_steps_divide_T(tiny_unet, steps):
    """Song et al. (2021), equation 12 with sigma = 0."""
    scheduler = trained()
    alpha_bar = scheduler.alphas_cumprod.double()
    seen = states(tiny_unet, "ddim", scheduler, steps)
    timesteps = trailing(50, steps)
    assert len(seen) == steps + 1
    for i, t in enumerate(timesteps):
        x = seen[i].double()
        with torch.no_grad():
            epsilon = tiny_unet(seen[i], t).sample.double()
        previous = alpha_bar[timesteps[i + 1]] if i + 1 < steps else 1.0
        x0 = ((x - (1 - alpha_bar[t]) ** 0.5 * epsilon) / alpha_bar[t] ** 0.5).clamp(-1, 1)
        epsilon = (x - alpha_bar[t] ** 0.5 * x0) / (1 - alpha_bar[t]) ** 0.5  # what x holds beside the clipped image
        expected = previous**0.5 * x0 + (1 - previous) ** 0.5 * epsilon
        torch.testing.assert_close(seen[i + 1].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [7, 50])
def test_ddpm_has_the_posteriors_mean_and_variance(tiny_unet, variance_type, steps):
    """Ho et al. (2020), equations 6 and 7, between neighbours of the timesteps taken."""
    scheduler = trained(variance_type=variance_type)
    alpha_bar = scheduler.alphas_cumprod.double()
    seen = states(tiny_unet, "ddpm", scheduler, steps)
    timesteps = trailing(50, steps)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    for i, t in enumerate(timesteps):
        x = seen[i].double()
        with torch.no_grad():
            epsilon = tiny_unet(seen[i], t).sample.double()
        a, b = alpha_bar[t], alpha_bar[timesteps[i + 1]] if i + 1 < steps else torch.tensor(1.0).double()
        beta = 1 - a / b
        x0 = ((x - (1 - a) ** 0.5 * epsilon) / a**0.5).clamp(-1, 1)
        mean = b**0.5 * beta / (1 - a) * x0 + (a / b) ** 0.5 * (1 - b) / (1 - a) * x
        variance = beta if variance_type == "fixed_large" else beta * (1 - b) / (1 - a)
        if i + 1 < steps:
            z = torch.cat([torch.randn(1, 1, 8, 8, generator=g) for g in generators]).double()
            mean = mean + variance**0.5 * z
        torch.testing.assert_close(seen[i + 1].double(), mean, atol=2e-5, rtol=1e-4)


def test_ddpm_equals_the_stock_pipeline(tiny_unet):
    scheduler = trained()
    stock = DDPMPipeline(tiny_unet.eval(), DDPMScheduler.from_config(scheduler.config))
    stock.set_progress_bar_config(disable=True)
    ours = pipeline(tiny_unet, scheduler, "ddpm")
    a = stock(3, torch.Generator().manual_seed(0), 10, output_type="np").images
    b = ours(3, generator=torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np").images
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_i_follows_from_seed_i_whatever_the_batch(tiny_unet, sampler):
    pipe, sampling = ImageGenerationPipeline(tiny_unet.eval(), trained()), Sampling(sampler, 8)
    draws = {size: draw_images(pipe, range(10, 17), size, sampling) for size in (1, 4, 7, 100)}
    assert all(images.shape == (7, 1, 8, 8) and images.dtype == np.uint8 for images in draws.values())
    for images in draws.values():  # convolutions round differently for another batch size: at most one gray level
        assert np.abs(images.astype(int) - draws[1]).max() <= 1
    assert len({image.tobytes() for image in draws[1]}) == 7
    again = draw_images(pipe, [12], 1, sampling)
    np.testing.assert_array_equal(again[0], draws[1][2])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_strip_begins_with_noise_and_ends_with_the_image(tiny_unet, sampler):
    pipe, sampling = ImageGenerationPipeline(tiny_unet.eval(), trained()), Sampling(sampler, 20)
    strip = draw_strip(pipe, [5, 6], sampling, columns=6)
    assert strip.shape == (2, 6, 1, 8, 8)
    np.testing.assert_array_equal(strip[:, -1], draw_images(pipe, [5, 6], 2, sampling))
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))[0]
    np.testing.assert_array_equal(strip[0, 0], ((noise / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_keeps_the_trained_schedule_through_save_and_load(sampler, tmp_path):
    scheduler = build_sampler(sampler, trained(T=200, beta_end=0.05, variance_type="fixed_large"))
    scheduler.save_pretrained(tmp_path)
    back = type(scheduler).from_pretrained(tmp_path)
    assert back.config.timestep_spacing == "trailing"
    torch.testing.assert_close(back.alphas_cumprod, trained(T=200, beta_end=0.05).alphas_cumprod)
    assert back.config.prediction_type == "epsilon"


def test_wrong_calls_are_refused(tiny_unet):
    pipe = ImageGenerationPipeline(tiny_unet, trained())
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        pipe(3, generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(ValueError, match="'jpg' is not one of"):
        pipe(1, output_type="jpg")
    with pytest.raises(ValueError, match="need"):
        pipe(1, latents=torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="51 denoising steps cannot be taken"):
        num_steps("ddim", 51, trained())
    with pytest.raises(UserError, match="choose from ddpm, ddim"):
        build_sampler("euler", trained())


def test_shapes_that_are_not_square_and_three_channels():
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=(16, 32), block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, attention_head_dim=8,
    )  # fmt: skip
    pipe = pipeline(unet, trained(), "ddim")
    assert pipe(2, num_inference_steps=2, output_type="pt").images.shape == (2, 3, 16, 32)
    assert pipe(2, num_inference_steps=2).images[0].size == (32, 16)


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++", "unipc"])
def test_a_scheduler_swapped_as_diffusers_does_it_draws_what_the_sampler_of_that_name_draws(tiny_unet, sampler):
    """Clipping included, which Diffusers' solvers would not take over by themselves."""
    pipe = ImageGenerationPipeline(tiny_unet.eval(), trained())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SAMPLERS[sampler].from_config(pipe.scheduler.config)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    theirs = pipe(2, num_inference_steps=6, generator=generators, output_type="pt", latents=None).images
    ours = draw_images(ImageGenerationPipeline(tiny_unet, trained()), range(2), 2, Sampling(sampler, 6))
    np.testing.assert_array_equal((theirs * 255).round().to(torch.uint8).numpy(), ours)


def test_a_list_of_labels_says_how_many_images():
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=4,
    )  # fmt: skip
    pipe = ImageGenerationPipeline(unet, trained(), num_classes=3, id2label={"0": "a", "1": "b", "2": "c"})
    pipe.set_progress_bar_config(disable=True)
    assert pipe(class_labels=["c", "a"], num_inference_steps=1, output_type="pt").images.shape == (2, 1, 8, 8)
