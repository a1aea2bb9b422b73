"""Every sampler's step against its paper's equations, written again here in numpy's float64.

`ReferenceSteps` knows nothing of Diffusers: it is given the table of alpha bar and the timesteps, and told each state.
tests/pipelines/test_gaussian.py runs it on affine maps.
"""

from fractions import Fraction

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

KINDS = ["epsilon", "sample", "v_prediction"]


# ---- the reference


def trailing(T, steps):
    """Lin et al. (2024), table 2: T, T - T / n, ... rounded, less one."""
    return [round(T - i * Fraction(T, steps)) - 1 for i in range(steps)]


def noise_levels(sampler, table, steps):
    """Alpha bar at each of the `steps` noise levels, the highest first, and the timesteps that have them.

    Of Heun's method: Karras et al. (2022), equation 5 with rho = 7, between the first and the last of the trailing
    timesteps, or 160 where the first is above it; a timestep then lies where log sigma, taken as linear between the table's entries, has that value.
    """
    timesteps = trailing(len(table), steps)
    if sampler != "heun":
        return table[timesteps], timesteps
    sigmas = np.sqrt((1 - table) / table)
    root_max, root_min = min(sigmas[timesteps[0]], 160) ** (1 / 7), sigmas[timesteps[-1]] ** (1 / 7)
    taken = np.array([(root_max + i / max(steps - 1, 1) * (root_min - root_max)) ** 7 for i in range(steps)])
    return 1 / (1 + taken**2), np.interp(np.log(taken), np.log(sigmas), np.arange(len(table)))


def passes(sampler, steps):
    """Which of the noise levels, 0 the highest, each forward pass of the denoiser is at."""
    return [(i + 1) // 2 for i in range(2 * steps - 1)] if sampler == "heun" else list(range(steps))


def to_x0(kind, prediction, x, alpha_bar):
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    match kind:
        case "epsilon":
            return (x - noise * prediction) / signal
        case "sample":
            return prediction
        case "v_prediction":
            return signal * x - noise * prediction


class ReferenceSteps:
    """From one state of the reverse process to the next, both as the denoiser sees them.

    `alpha_bar`: of the timesteps taken; `x0` is what the denoiser makes of the state, which may be clipped here.
    """

    def __init__(self, sampler, alpha_bar, eta=0.0, clip=lambda x0: x0):
        self.sampler, self.eta, self.clip = sampler, eta, clip
        self.alpha_bar = [*map(float, alpha_bar), 1.0]
        self.images, self.corrected = [], None

    def step(self, i, x, x0, z=None, fraction=0.0):
        """The state after pass `i`; `z` is the noise it may use, `fraction` DDPM's, of Nichol & Dhariwal's eq. 15."""
        match self.sampler:
            case "ddpm":
                return self.ddpm(i, x, self.clip(x0), z, fraction)
            case "ddim":
                return self.ddim(i, x, self.clip(x0), z)
            case "dpmsolver++":
                return self.dpm_solver(i, x, self.clip(x0))
            case "unipc":
                return self.unipc(i, x, self.clip(x0))
            case "heun":
                return self.heun(i, x, self.clip(x0))

    def ddpm(self, i, x, x0, z, fraction):
        """Ho et al. (2020), equations 6 and 7, of the process that has the timesteps taken alone."""
        a, b = self.alpha_bar[i : i + 2]
        if b == 1:
            return x0
        beta = 1 - a / b
        tilde = beta * (1 - b) / (1 - a)
        mean = (b**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - b) * x) / (1 - a)
        return mean + (beta**fraction * tilde ** (1 - fraction)) ** 0.5 * z

    def ddim(self, i, x, x0, z):
        """Song et al. (2021), equations 12 and 16; the noise is what x holds beside the image, clipped or not."""
        a, b = self.alpha_bar[i : i + 2]
        epsilon = (x - a**0.5 * x0) / (1 - a) ** 0.5
        sigma = self.eta * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b) ** 0.5
        after = b**0.5 * x0 + (1 - b - sigma**2) ** 0.5 * epsilon
        return after + sigma * z if sigma else after

    def log_snr(self, i):
        """lambda = log(alpha / sigma), alpha and sigma."""
        a = self.alpha_bar[i]
        return 0.5 * np.log(a / (1 - a)), a**0.5, (1 - a) ** 0.5

    def dpm_solver(self, i, x, x0):
        """Lu et al. (2022b), DPM-Solver++, algorithm 2 (2M); its first and last steps are of first order, DDIM's."""
        self.images.append(x0)
        if self.alpha_bar[i + 1] == 1:
            return x0
        (lambda_s, _, sigma_s), (lambda_t, alpha_t, sigma_t) = self.log_snr(i), self.log_snr(i + 1)
        h, D = lambda_t - lambda_s, x0
        if i:
            r = (lambda_s - self.log_snr(i - 1)[0]) / h
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * self.images[-2]
        return sigma_t / sigma_s * x - alpha_t * (np.exp(-h) - 1) * D

    def unipc(self, i, x, x0):
        """Zhao et al. (2023), data prediction: UniC-p on the state, then UniP-p from it, with B(h) = e^h - 1, p = 2.

        The state that the next prediction is made from is the predictor's. Both orders' first step is p = 1.
        """
        self.images.append(x0)
        x = self.corrected = self._corrected(i, x)
        if self.alpha_bar[i + 1] == 1:
            return x0
        (lambda_s, _, sigma_s), (lambda_t, alpha_t, sigma_t) = self.log_snr(i), self.log_snr(i + 1)
        h, D = lambda_t - lambda_s, 0
        if i:  # a_1 = 1/2 whatever B(h) (section 3.3)
            r = (self.log_snr(i - 1)[0] - lambda_s) / h
            D = 0.5 * (self.images[-2] - x0) / r
        return sigma_t / sigma_s * x + alpha_t * (1 - np.exp(-h)) * (x0 + D)

    def _corrected(self, i, x):
        """UniC. Of order 2 its conditions (theorem 3.1) are those of a quadrature of sigma_t int e^l x0(l) dl that is
        exact for the parabola through the two images before and the new one; of order 1, a_1 = 1/2."""
        if i == 0:
            return x
        (lambda_s, alpha_s, sigma_s), (lambda_t, alpha_t, sigma_t) = self.log_snr(i - 1), self.log_snr(i)
        h = lambda_t - lambda_s
        if i == 1:
            before, new = self.images[-2:]
            return sigma_t / sigma_s * self.corrected + alpha_t * (1 - np.exp(-h)) * (before + new) / 2
        nodes = np.array([self.log_snr(i - 2)[0] - lambda_s, 0, h])
        moments = [np.exp(h) - 1]  # of e^u on [0, h], by parts
        for k in (1, 2):
            moments.append(h**k * np.exp(h) - k * moments[-1])
        weights = np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
        integral = sum(w * image for w, image in zip(weights, self.images[-3:], strict=True))
        return sigma_t / sigma_s * self.corrected + sigma_t * alpha_s / sigma_s * integral

    def heun(self, i, x, x0):
        """Karras et al. (2022), algorithm 1 with sigma(t) = t and s(t) = 1: Heun's second order, Euler's to sigma = 0.

        Their x is ours over sqrt(alpha bar), their sigma sqrt((1 - alpha bar) / alpha bar).
        """
        level, predicts = (i + 1) // 2, i % 2 == 0
        sigmas = [((1 - a) / a) ** 0.5 for a in self.alpha_bar]
        x = x / self.alpha_bar[level] ** 0.5
        slope = (x - x0) / sigmas[level]
        if predicts:
            self.start, self.slope = x, slope
            after, reached = x + (sigmas[level + 1] - sigmas[level]) * slope, level + 1
        else:
            after = self.start + (sigmas[level] - sigmas[level - 1]) * (self.slope + slope) / 2
            reached = level
        return after * self.alpha_bar[reached] ** 0.5


# ---- driving the pipeline


def wave(x, t, channels, sin):
    """What the stand-in predicts, of numpy arrays and tensors; the second `channels` would be a learned variance."""
    mean = 1.3 * sin(2 * x + 0.3 * t) + 0.2 * x
    return mean if channels == 1 else (mean, 1.2 * sin(3 * x - 0.2 * t))


class Wave(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sample_size: int = 3, in_channels: int = 2, out_channels: int = 2):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep, class_labels=None):
        assert sample.dtype == torch.float32
        outputs = self.config.out_channels // self.config.in_channels
        predicted = wave(sample, timestep, outputs, torch.sin)
        return UNet2DOutput(sample=predicted if outputs == 1 else torch.cat(predicted, dim=1))


def schedule(kind="epsilon", clip=True, **settings):
    """Few timesteps and large betas, so that float32 tables lose nothing: this is about the steps."""
    ends = {"num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.4}
    scheduler = build_scheduler(Diffusion(**{**ends, "prediction_type": kind, **settings}))
    return scheduler if clip else DDPMScheduler.from_config(scheduler.config, clip_sample=False)


def pipeline(sampler, scheduler, outputs=1, **settings):
    denoiser = Wave(out_channels=2 * outputs).eval()
    scheduler = build_sampler(sampler, scheduler) if isinstance(sampler, str) else sampler
    pipe = ImageGenerationPipeline(denoiser, scheduler, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, steps, eta=0.0, n=3):
    """The states, from x_T as the denoiser sees it to x_0, the timesteps, and the noise that each pass may use."""
    noise = torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    seen, timesteps = [], []

    def keep(pipe, i, t, tensors):
        assert i == len(timesteps)
        timesteps.append(t)
        seen.append(tensors["latents"].double().numpy())

    options = {"generator": torch.Generator().manual_seed(2), "num_inference_steps": steps, "eta": eta}
    image = pipe(n, latents=noise, output_type="latent", callback_on_step_end=keep, **options).images
    np.testing.assert_array_equal(image.double().numpy(), seen[-1])
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randn(noise.shape, generator=generator).double().numpy() for _ in timesteps]
    return [noise.double().numpy(), *seen], timesteps, drawn


def check_steps(pipe, sampler, kind, steps, eta=0.0, fraction=0.0, clip=True, table=None, tolerance=1e-5):
    """Every step of a run against the reference's from the state that the run was in."""
    states, timesteps, drawn = run(pipe, steps, eta)
    table = pipe.scheduler.alphas_cumprod.double().numpy() if table is None else table
    alpha_bar, taken = noise_levels(sampler, table, steps)
    level = passes(sampler, steps)
    np.testing.assert_allclose(timesteps, np.array(taken)[level], rtol=1e-5, atol=0 if sampler != "heun" else 1e-4)
    bound = (lambda x0: np.clip(x0, -1, 1)) if clip else (lambda x0: x0)
    reference = ReferenceSteps(sampler, alpha_bar, eta, bound)
    if sampler == "heun":  # it starts at sigma_T times noise, where the others start at sqrt(1 + sigma_T^2)
        states[0] = states[0] * (1 - alpha_bar[0]) ** 0.5
    clipped = 0
    for i, t in enumerate(timesteps):
        mean = wave(states[i], t, 1, np.sin)
        of_variance = (wave(states[i], t, 2, np.sin)[1] + 1) / 2 if fraction == "learned" else fraction
        x0 = to_x0(kind, mean, states[i], alpha_bar[level[i]])
        clipped += (np.abs(x0) > 1).any()
        expected = reference.step(i, states[i], x0, drawn[i], of_variance)
        np.testing.assert_allclose(states[i + 1], expected, atol=tolerance, rtol=tolerance, err_msg=f"pass {i}")
    assert clipped  # so that clipping, or none, was tried
    return states


STEPS = pytest.mark.parametrize("steps", [1, 2, 7, 20])


@STEPS
@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "free"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_is_the_papers(sampler, kind, clip, steps):
    pipe = pipeline(sampler, schedule(kind, clip))
    check_steps(pipe, sampler, kind, steps, clip=clip, tolerance=1e-5 if clip else 5e-5)


@STEPS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddims_noise(eta, kind, steps):
    check_steps(pipeline("ddim", schedule(kind)), "ddim", kind, steps, eta=eta)


@STEPS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("variance", "fraction"),
    [
        ({"variance_type": "fixed_small"}, 0.0),
        ({"variance_type": "fixed_large"}, 1.0),
        ({"variance_type": "learned_range"}, "learned"),
        ({"variance_type": "fixed_exponent", "variance_exponent": 0.3}, 0.3),
        ({"variance_type": "fixed_exponent", "variance_exponent": 1.0}, 1.0),
    ],
)
def test_ddpms_variances(variance, fraction, kind, steps):
    """Ho et al. (2020), section 3.2; Nichol & Dhariwal (2021), equation 15; Ho & Salimans (2022), algorithm 2."""
    outputs = 2 if fraction == "learned" else 1
    settings = {"variance_exponent": variance["variance_exponent"]} if "variance_exponent" in variance else {}
    pipe = pipeline("ddpm", schedule(kind, **variance), outputs, **settings)
    check_steps(pipe, "ddpm", kind, steps, fraction=fraction)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2", "sigmoid", "sigmoid_alpha_bar"])
def test_zero_terminal_snr_can_be_sampled(sampler, kind, name):
    """Lin et al. (2024); to the solvers, which divide by it, the last alpha bar is 2^-24 instead of zero."""
    ends = {"beta_start": 0.01, "beta_end": 0.4} if name in ("linear", "sigmoid") else {}
    diffusion = Diffusion(
        num_train_timesteps=20, beta_schedule=name, prediction_type=kind, rescale_betas_zero_snr=True, **ends
    )
    trained = build_scheduler(diffusion)
    pipe = pipeline(sampler, trained)
    table = pipe.scheduler.alphas_cumprod.double().numpy()
    assert table[-1] == pytest.approx(0 if sampler in ("ddpm", "ddim") else 2**-24, rel=0.02)
    np.testing.assert_allclose(table[:-1], trained.alphas_cumprod[:-1], rtol=1e-5)
    for steps in (1, 2, 7, 20):
        states = check_steps(pipe, sampler, kind, steps, tolerance=1e-3)  # Heun's x is 4096 times ours
        assert all(np.isfinite(state).all() for state in states)


# ---- timesteps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("T", "steps"), [(100, 97), (100, 98), (100, 99), (100, 49), (100, 30), (1000, 61), (50, 50)])
def test_any_number_of_steps_takes_the_trailing_timesteps(sampler, T, steps):
    """Diffusers' rounding may add a timestep -1: of 100 timesteps 97, of 1,000 61."""
    pipe = pipeline(sampler, build_scheduler(Diffusion(num_train_timesteps=T)))
    states, timesteps, _ = run(pipe, steps, n=1)
    taken = [round(T - i * T / steps) - 1 for i in range(steps)]
    assert taken == sorted(set(taken), reverse=True)
    assert taken[0] == T - 1
    assert taken[-1] >= 0
    if sampler == "heun":  # it has levels of its own
        assert timesteps[0] == T - 1
        assert any(timesteps[-1] == pytest.approx(end, abs=1e-4) for end in (taken[-1], 0))
        assert (np.diff(timesteps)[::2] < 0).all()
        assert (np.diff(timesteps)[1::2] == 0).all()
        assert len(timesteps) == 2 * steps - 1
    else:
        assert timesteps == taken
    assert all(np.isfinite(state).all() for state in states)
    if sampler == "ddpm":
        assert np.abs(states[-1]).max() <= 1


def test_the_number_of_steps_that_is_not_given():
    for sampler, T, expected in [("ddpm", 70, 70), ("ddim", 70, 50), ("unipc", 20, 20), ("heun", 60, 99)]:
        assert len(run(pipeline(sampler, build_scheduler(Diffusion(num_train_timesteps=T))), None)[1]) == expected


# ---- one schedule for all samplers


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2", "sigmoid", "sigmoid_alpha_bar", "trained_betas"])
def test_a_sampler_swapped_saved_and_loaded_draws_the_same(name, zero_snr, tmp_path):
    kind = "v_prediction" if zero_snr else "epsilon"
    chosen = {"beta_schedule": name}
    if name == "trained_betas":
        chosen = {name: tuple(np.random.default_rng(0).uniform(0.01, 0.3, 20).tolist())}
    trained = build_scheduler(
        Diffusion(num_train_timesteps=20, prediction_type=kind, rescale_betas_zero_snr=zero_snr, **chosen)
    )
    trained.save_pretrained(tmp_path / "trained")
    loaded = DDPMScheduler.from_pretrained(tmp_path / "trained")
    for sampler in SAMPLERS:
        scheduler = build_sampler(sampler, trained)
        scheduler.save_pretrained(tmp_path / sampler)
        drawn = []
        for other in (
            scheduler,
            type(scheduler).from_pretrained(tmp_path / sampler),
            build_sampler(sampler, loaded),
            build_sampler(sampler, type(scheduler).from_pretrained(tmp_path / sampler)),
        ):
            assert type(other) is SAMPLERS[sampler]
            assert other.config.prediction_type == kind
            assert other.config.timestep_spacing == "trailing"
            assert other.config.num_train_timesteps == 20
            torch.testing.assert_close(other.alphas_cumprod, trained.alphas_cumprod, rtol=1e-5, atol=2e-7)
            if not zero_snr:
                assert torch.equal(other.betas, trained.betas)
            drawn.append(run(pipeline(other, None), 7)[0][-1])
        for image in drawn[1:]:
            np.testing.assert_array_equal(image, drawn[0])


@pytest.mark.parametrize("first", SAMPLERS)
@pytest.mark.parametrize("second", SAMPLERS)
def test_swapping_twice_is_swapping_once(first, second):
    trained = schedule("v_prediction")
    once = build_sampler(second, trained)
    twice = build_sampler(second, build_sampler(first, trained))
    assert torch.equal(once.betas, twice.betas)
    a, b = (run(pipeline(scheduler, None), 7)[0][-1] for scheduler in (once, twice))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ddpm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_variance_changes_nothing_but_ddpm(sampler, kind):
    """Nor does one that was trained with an exponent, which has no channels of its own."""
    mean_only = run(pipeline(sampler, schedule(kind)), 7, eta=0.4)[0]
    learned = run(pipeline(sampler, schedule(kind, variance_type="learned_range"), outputs=2), 7, eta=0.4)[0]
    np.testing.assert_array_equal(learned, mean_only)
    fixed = schedule(kind, variance_type="fixed_exponent", variance_exponent=0.3)
    exponent = run(pipeline(sampler, fixed, variance_exponent=0.3), 7, eta=0.4)[0]
    np.testing.assert_array_equal(exponent, mean_only)
    # and with a scheduler that a user put in with from_config, which keeps the variance type
    swapped = SAMPLERS[sampler].from_config(schedule(kind, variance_type="learned_range").config)
    if sampler == "ddim":  # to the others, build_sampler says more
        np.testing.assert_array_equal(run(pipeline(swapped, None, outputs=2), 7, eta=0.4)[0], mean_only)
    else:
        assert np.isfinite(run(pipeline(swapped, None, outputs=2), 7)[0]).all()


def test_the_pipeline_leaves_its_scheduler_as_it_was():
    """Schedulers hold state; two calls in a row draw the same."""
    for sampler in SAMPLERS:
        pipe = pipeline(sampler, schedule())
        before = pipe.scheduler.timesteps.clone()
        a, b = run(pipe, 7)[0], run(pipe, 7)[0]
        np.testing.assert_array_equal(a, b)
        assert torch.equal(pipe.scheduler.timesteps, before)
