"""Sampling where everything is known: of normal data the right denoiser is linear, so every sampler is a linear map.

The data of each class are N(m, C), of 1x2x2 images with a full covariance; E[x_0 | x_t] is then in closed form, and the
papers' recursions (`ReferenceSteps`, run on affine maps instead of numbers) say what comes of every noise.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from ddpm_hf.config import Diffusion
from ddpm_hf.diffusion.samplers import SAMPLERS, build_sampler
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from tests.pipelines.test_sampler_steps import ReferenceSteps, noise_levels, passes

KINDS = ["epsilon", "sample", "v_prediction"]
NULL = 2  # of two classes
NAMES = {"0": "circle", "1": "square"}


def data():
    """Mean and covariance of the two classes and of what the null class stands for."""
    rng = np.random.default_rng(0)
    classes = []
    for spread in (0.3, 0.6, 0.8):
        A = rng.normal(size=(4, 4))
        classes.append((rng.normal(size=4) * 0.7, spread**2 * (A @ A.T / 4 + 0.1 * np.eye(4))))
    return classes


CLASSES = data()


def posterior_of_x0(label, alpha_bar):
    """E[x_0 | x_t] = P x_t + p, the regression of x_0 on x_t = a x_0 + s epsilon."""
    mean, covariance = CLASSES[label]
    a = np.sqrt(alpha_bar)
    P = a * covariance @ np.linalg.inv(alpha_bar * covariance + (1 - alpha_bar) * np.eye(4))
    return P, mean - a * P @ mean


class Knows(ModelMixin, ConfigMixin):
    """Predicts as well as can be; `table` is alpha bar, between whose entries log sigma is linear.

    `calls` has the batch's size, the class labels and the timestep of every forward pass.
    """

    @register_to_config
    def __init__(self, sample_size: int = 2, in_channels: int = 1, out_channels: int = 1):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = []

    def knowing(self, table, kind):
        self.log_sigmas, self.kind = 0.5 * np.log((1 - table) / table), kind
        return self

    def forward(self, sample, timestep, class_labels=None):
        self.calls.append((len(sample), None if class_labels is None else class_labels.tolist(), float(timestep)))
        sigma2 = np.exp(2 * np.interp(float(timestep), np.arange(len(self.log_sigmas)), self.log_sigmas))
        a, s = 1 / np.sqrt(1 + sigma2), np.sqrt(sigma2 / (1 + sigma2))
        x = sample.flatten(1).double()
        labels = torch.zeros(len(x), dtype=torch.int64) if class_labels is None else class_labels
        x0 = torch.full_like(x, torch.nan)
        for label in range(3):
            P, p = posterior_of_x0(label, a**2)
            x0 = torch.where(labels[:, None] == label, x @ torch.tensor(P.T) + torch.tensor(p), x0)
        epsilon = (x - a * x0) / s
        out = {"epsilon": epsilon, "sample": x0, "v_prediction": a * epsilon - s * x0}[self.kind]
        return UNet2DOutput(sample=out.float().view_as(sample))


def pipeline(sampler, kind="epsilon", conditional=True, T=50, **settings):
    # ends at a sigma of 130: noise predictions are not drawn from more than 200
    scale = {"scale_betas": True, "beta_end": 0.017} if T < 1000 else {}
    diffusion = Diffusion(num_train_timesteps=T, prediction_type=kind, **scale, **settings)
    scheduler = DDPMScheduler.from_config(build_scheduler(diffusion).config, clip_sample=False)
    denoiser = Knows().knowing(scheduler.alphas_cumprod.double().numpy(), kind).eval()
    classes = {"num_classes": 2, "id2label": NAMES} if conditional else {}
    pipe = ImageGenerationPipeline(
        denoiser,
        build_sampler(sampler, scheduler),
        **classes,
        variance_exponent=diffusion.variance_exponent,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def affine_map(sampler, table, steps, label, eta=0.0, fraction=0.0, guidance=1.0, interval=(0, np.inf)):
    """x_0 as an affine function of x_T's noise and each pass's: (4, 1 + 4 (1 + passes)), the constant first."""
    alpha_bar, _ = noise_levels(sampler, table, steps)
    level = passes(sampler, steps)
    reference = ReferenceSteps(sampler, alpha_bar, eta)
    columns = np.split(np.eye(1 + 4 * (1 + len(level))), np.arange(1, 4 * (1 + len(level)), 4))
    x = columns[1] * (np.sqrt(1 - alpha_bar[0]) if sampler == "heun" else 1)
    for i, at in enumerate(level):
        guided = guidance if interval[0] <= np.sqrt(1 / alpha_bar[at] - 1) <= interval[1] else 1.0
        x0 = 0
        for one, weight in ((label, guided), (NULL, 1 - guided)):  # uncond + s (cond - uncond)
            P, p = posterior_of_x0(one, alpha_bar[at])
            x0 = x0 + weight * (P @ x + p[:, None] * columns[0])
        x = reference.step(i, x, x0, columns[2 + i], fraction)
    return x


def moments(M):
    return M[:, 0], M[:, 1:] @ M[:, 1:].T


VARIANTS = {
    "ddpm-small": ("ddpm", {}, {}),
    "ddpm-large": ("ddpm", {"variance_type": "fixed_large"}, {"fraction": 1.0}),
    "ddpm-0.3": ("ddpm", {"variance_type": "fixed_exponent", "variance_exponent": 0.3}, {"fraction": 0.3}),
    "ddim": ("ddim", {}, {}),
    "ddim-0.5": ("ddim", {}, {"eta": 0.5}),
    "ddim-1": ("ddim", {}, {"eta": 1.0}),
    "dpmsolver++": ("dpmsolver++", {}, {}),
    "unipc": ("unipc", {}, {}),
    "heun": ("heun", {}, {}),
}
variants = pytest.mark.parametrize(("sampler", "settings", "options"), VARIANTS.values(), ids=VARIANTS)


# ---- what comes of each noise


@pytest.mark.parametrize(
    "guidance",
    [{}, {"guidance": 2.5}, {"guidance": 4.0, "interval": (0.4, 6.1)}],
    ids=["unguided", "guided", "guided-within"],
)
@pytest.mark.parametrize("steps", [50, 7])
@pytest.mark.parametrize("kind", KINDS)
@variants
def test_every_noise_becomes_what_the_papers_say(sampler, settings, options, kind, steps, guidance):
    """Guidance: Ho & Salimans (2022), equation 6 with w = s - 1; its interval: Kynkäänniemi et al. (2024)."""
    pipe = pipeline(sampler, kind, **settings)
    labels = [0, 1, NULL, 1, 0]
    noise = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    images = pipe(
        5,
        labels,
        guidance.get("guidance", 1.0),
        guidance.get("interval"),
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(2),
        latents=noise,
        eta=options.get("eta", 0.0),
        output_type="latent",
    ).images
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.ones(5, 1), noise.flatten(1)]
    drawn += [torch.randn(noise.shape, generator=generator).flatten(1) for _ in passes(sampler, steps)]
    drawn = torch.cat(drawn, dim=1).double().numpy()
    table = pipe.scheduler.alphas_cumprod.double().numpy()
    maps = [affine_map(sampler, table, steps, label, **options, **guidance) for label in range(3)]
    expected = np.stack([maps[label] @ row for label, row in zip(labels, drawn, strict=True)])
    np.testing.assert_allclose(images.flatten(1).double().numpy(), expected, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [50, 7])
@variants
def test_many_samples_have_the_moments_of_the_recursion(sampler, settings, options, steps):
    """With noise that the pipeline draws by itself: fresh for each step, and for each image."""
    pipe, n = pipeline(sampler, **settings), 4_000
    images = pipe(
        n,
        "square",
        1.8,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        eta=options.get("eta", 0.0),
        output_type="latent",
    ).images
    x = images.flatten(1).double().numpy()
    table = pipe.scheduler.alphas_cumprod.double().numpy()
    mean, covariance = moments(affine_map(sampler, table, steps, 1, **options, guidance=1.8))
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(x.mean(0) - mean) < 5 * deviation / np.sqrt(n) + 1e-4).all()
    error = np.sqrt((np.outer(deviation, deviation) ** 2 + covariance**2) / n)
    assert (np.abs(np.cov(x.T) - covariance) < 5 * error + 1e-4).all()


def errors(mean, covariance, label=1):
    m, C = CLASSES[label]
    return np.linalg.norm(mean - m) / np.linalg.norm(m), np.linalg.norm(covariance - C) / np.linalg.norm(C)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("ddpm-small", 0.06),
        ("ddpm-large", 0.02),
        ("ddim", 0.03),
        ("ddim-1", 0.06),
        ("dpmsolver++", 0.003),
        ("unipc", 0.003),
        ("heun", 0.003),
    ],
)
def test_more_steps_come_closer_to_the_data(name, close):
    """Of a thousand timesteps, by default; unguided, the mean's and the covariance's error fall with every doubling.

    What a deterministic sampler does to five noises, the pipeline's own map is known from.
    """
    sampler, settings, options = VARIANTS[name]
    pipe = pipeline(sampler, T=1000, **settings)
    table = pipe.scheduler.alphas_cumprod.double().numpy()
    found = []
    for steps in (32, 64, 128, 256):
        M = affine_map(sampler, table, steps, 1, **options)
        if sampler != "ddpm" and not options:
            basis = torch.cat([torch.zeros(1, 4), torch.eye(4)]).view(5, 1, 2, 2)
            x = pipe(5, 1, num_inference_steps=steps, latents=basis, output_type="latent").images.flatten(1).double()
            mapped = np.column_stack([x[0], (x[1:] - x[0]).T])
            np.testing.assert_allclose(mapped, M[:, :5], atol=2e-3)
            M = mapped
        found.append(errors(*moments(M)))
    for before, after in pairwise(found):
        assert after[0] < 2e-3  # the share of the mean that is left at x_T, where sampling begins without it
        assert after[1] < 0.7 * before[1]
    assert max(found[-1]) < close, found


# ---- which predictions guidance asks for


def calls_of(pipe, *args, **options):
    pipe.unet.calls.clear()
    generator = torch.Generator().manual_seed(0)
    image = pipe(*args, generator=generator, num_inference_steps=7, output_type="latent", **options).images
    return list(pipe.unet.calls), image


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_guidance_there_is_one_prediction_of_the_labels_alone(sampler):
    calls, _ = calls_of(pipeline(sampler), 3, [1, 0, 1], 1.0, (0.5, 3.0))
    assert len(calls) == len(passes(sampler, 7))
    assert all((size, labels) == (3, [1, 0, 1]) for size, labels, _ in calls)
    calls, _ = calls_of(pipeline(sampler), 3)
    assert all((size, labels) == (3, [NULL] * 3) for size, labels, _ in calls)
    calls, _ = calls_of(pipeline(sampler, conditional=False), 3)
    assert all((size, labels) == (3, None) for size, labels, _ in calls)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_guidance_both_predictions_are_one_batch_within_the_interval(sampler):
    pipe = pipeline(sampler)
    calls, _ = calls_of(pipe, 3, [1, 0, 1], 2.0)
    assert all((size, labels) == (6, [NULL] * 3 + [1, 0, 1]) for size, labels, _ in calls)
    table = pipe.scheduler.alphas_cumprod.double().numpy()
    alpha_bar, _ = noise_levels(sampler, table, 7)
    sigmas = np.sqrt(1 / alpha_bar - 1)
    low, high = np.sqrt(sigmas[4:6].prod()), np.sqrt(sigmas[1:3].prod())  # the third to the fifth level
    calls, _ = calls_of(pipe, 3, [1, 0, 1], 2.0, (low, high))
    for level, (size, labels, _) in zip(passes(sampler, 7), calls, strict=True):
        if 2 <= level <= 4:
            assert (size, labels) == (6, [NULL] * 3 + [1, 0, 1])
        else:
            assert (size, labels) == (3, [1, 0, 1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interval_of_nothing_or_everything(sampler):
    pipe = pipeline(sampler)
    plain = calls_of(pipe, 3, 1)[1]
    assert torch.equal(calls_of(pipe, 3, 1, 3.0, (1e6, 1e7))[1], plain)
    guided = calls_of(pipe, 3, 1, 3.0)[1]
    assert torch.equal(calls_of(pipe, 3, 1, 3.0, (0.0, 1e6))[1], guided)
    assert not torch.allclose(guided, plain)


def test_zero_terminal_snr_has_an_infinite_noise_level():
    """Its first timestep is guided only where the interval has no end."""
    settings = {"rescale_betas_zero_snr": True, "kind": "v_prediction"}
    for sampler in ("ddpm", "ddim"):
        pipe = pipeline(sampler, **settings)
        pipe.unet.log_sigmas[-1] = 15.0
        calls, image = calls_of(pipe, 2, 1, 2.0, (0.0, 1e9))
        assert [size for size, _, _ in calls] == [2] + [4] * 6
        assert image.isfinite().all()
        assert calls_of(pipe, 2, 1, 2.0)[0][0][0] == 4


def test_a_learned_variance_is_the_conditional_ones():
    """Guidance moves the mean alone; the channels after it are not extrapolated."""

    class Both(Knows):
        def forward(self, sample, timestep, class_labels=None):
            mean = super().forward(sample, timestep, class_labels).sample
            variance = torch.where((class_labels == NULL).view(-1, 1, 1, 1), 0.9, -1.0).expand_as(mean)
            return UNet2DOutput(sample=torch.cat([mean, variance], dim=1))

    plain = pipeline("ddpm")  # fixed_small is what -1 means
    learned = pipeline("ddpm", variance_type="learned_range")
    learned = ImageGenerationPipeline(
        Both(out_channels=2).knowing(plain.scheduler.alphas_cumprod.double().numpy(), "epsilon").eval(),
        learned.scheduler,
        num_classes=2,
    )
    learned.set_progress_bar_config(disable=True)
    for guidance in (1.0, 2.0):
        a, b = (calls_of(pipe, 4, [0, 1, 1, 0], guidance)[1] for pipe in (plain, learned))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- labels


def test_ids_names_lists_and_tensors_mean_the_same():
    pipe = pipeline("ddim")
    for same in ([1, 1], "square", ["square", 1], (1, "square"), torch.tensor([1, 1])):
        assert torch.equal(calls_of(pipe, 2, same, 2.0)[1], calls_of(pipe, 2, 1, 2.0)[1])
    mixed = calls_of(pipe, 2, ["square", 0])[1]
    assert torch.equal(mixed[0], calls_of(pipe, 2, 1)[1][0])
    assert torch.equal(mixed[1], calls_of(pipe, 2, "circle")[1][1])
    assert torch.equal(calls_of(pipe, 2, NULL)[1], calls_of(pipe, 2)[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "triangle"), r"no class is named 'triangle'; this model knows 'circle', 'square'$"),
        ((1, 3), r"class 3 is not one of the ids 0 to 1, nor 2, the null class$"),
        ((1, -1), r"class -1 is not one of the ids 0 to 1"),
        ((1, [0.5]), r"class 0.5 is not one of the ids"),
        ((1, [True]), r"class True is not one of the ids"),
        ((2, [0, 1, 1]), r"3 class_labels for a batch of 2; give a list with one an image, or a bare one for all$"),
        ((1, None, 2.0), r"guidance_scale 2.0 needs class_labels to guide towards$"),
    ],
)
def test_labels_that_cannot_be_are_refused_in_a_line(arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        pipeline("ddim")(*arguments)
    assert "\n" not in str(refused.value)


def test_an_unconditional_model_takes_no_labels():
    pipe = pipeline("ddim", conditional=False)
    with pytest.raises(ValueError, match=r"^class_labels given to an unconditional model; leave them out$"):
        pipe(1, 0)
    with pytest.raises(ValueError, match=r"^guidance_scale 2.0 needs class_labels to guide towards$"):
        pipe(1, guidance_scale=2.0)
    nameless = ImageGenerationPipeline(Knows(), pipe.scheduler, num_classes=2)
    with pytest.raises(ValueError, match=r"^no class is named 'cat'; this model knows ids 0 to 1$"):
        nameless(1, "cat")
