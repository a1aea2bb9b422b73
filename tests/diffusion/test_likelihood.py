"""The variational bound against the papers' equations and exact normal probabilities, in mpmath and scipy."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_hf.config import Diffusion
from ddpm_hf.diffusion.likelihood import (
    bits_per_dimension,
    discretized_gaussian_log_likelihood,
    gaussian_log_likelihood,
    log_variance_of,
    normal_kl,
    prior_term,
    vlb_term,
)
from ddpm_hf.diffusion.process import DiffusionProcess
from ddpm_hf.diffusion.schedule import build_scheduler


def process_of(dtype=torch.float64, **settings):
    return DiffusionProcess(build_scheduler(Diffusion(**settings)).betas, dtype=dtype)


def pixels(*shape, seed=0):
    """8-bit images in [-1, 1], among them the darkest and the brightest."""
    levels = np.random.default_rng(seed).integers(0, 256, shape)
    levels.flat[:3] = [0, 255, 254]
    return torch.tensor(levels / 127.5 - 1, dtype=torch.float64)


def reference_tables(betas):
    """alpha bar, that of the timestep before, beta, and the log of beta tilde with its first value the second's."""
    beta = betas.double().numpy()
    alpha_bar = np.cumprod(1 - beta)
    before = np.append(1.0, alpha_bar)[:-1]
    tilde = (1 - before) / (1 - alpha_bar) * beta
    tilde[0] = tilde[1]
    return alpha_bar, before, beta, np.log(tilde)


def exact_bin_log_mass(level, mean, log_variance):
    """Ho et al. (2020), equation 13, of a gray level 0 to 255, by 60 digits of mpmath's erfc."""
    with mpmath.workdps(60):
        x, deviation = mpmath.mpf(level) * 2 / 255 - 1, mpmath.exp(mpmath.mpf(log_variance) / 2)

        def above(edge):  # P(pixel > edge)
            return mpmath.erfc((edge - mpmath.mpf(mean)) / deviation / mpmath.sqrt(2)) / 2

        if level == 0:
            mass = mpmath.erfc(-(x + mpmath.mpf(1) / 255 - mpmath.mpf(mean)) / deviation / mpmath.sqrt(2)) / 2
        elif level == 255:
            mass = above(x - mpmath.mpf(1) / 255)
        elif x > mean:
            mass = above(x - mpmath.mpf(1) / 255) - above(x + mpmath.mpf(1) / 255)
        else:  # mirrored, so that the difference is one of small numbers
            lower, upper = mean - (x - mpmath.mpf(1) / 255), mean - (x + mpmath.mpf(1) / 255)
            mass = (
                mpmath.erfc(upper / deviation / mpmath.sqrt(2)) - mpmath.erfc(lower / deviation / mpmath.sqrt(2))
            ) / 2
        return float(mpmath.log(mass))


# ---- L_0: the discretized decoder


@pytest.mark.parametrize("log_variance", [-14.0, -9.2, -6.0, -2.0])
def test_bins_have_their_exact_mass_near_and_far(log_variance):
    levels = [0, 1, 2, 50, 127, 128, 200, 253, 254, 255]
    means = [-3.0, -1.0, -0.7, -0.0041, 0.0, 0.003, 0.2, 0.999, 1.5]
    grid = [(level, mean) for level in levels for mean in means]
    x = torch.tensor([level / 127.5 - 1 for level, _ in grid], dtype=torch.float64)
    ours = discretized_gaussian_log_likelihood(
        x, torch.tensor([mean for _, mean in grid], dtype=torch.float64), torch.tensor(log_variance).double()
    )
    exact = [exact_bin_log_mass(level, mean, log_variance) for level, mean in grid]
    np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=1e-12)
    in_float32 = discretized_gaussian_log_likelihood(
        x.float(), torch.tensor([mean for _, mean in grid]), torch.tensor(log_variance)
    )
    np.testing.assert_allclose(in_float32, exact, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.1, -9.0), (-0.98, -4.0), (0.99, -12.0), (0.0, -1.0)])
def test_the_256_bins_are_a_distribution(mean, log_variance):
    x = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    log_mass = discretized_gaussian_log_likelihood(
        x, torch.tensor(mean, dtype=torch.float64), torch.tensor(log_variance, dtype=torch.float64)
    ).numpy()
    assert np.exp(log_mass).sum() == pytest.approx(1, abs=1e-6)
    normal = stats.norm(mean, math.exp(log_variance / 2))
    edges = np.concatenate([[-np.inf], np.arange(-1 + 1 / 255, 1, 2 / 255), [np.inf]])
    np.testing.assert_allclose(np.exp(log_mass), np.diff(normal.cdf(edges)), atol=1e-9)


@pytest.mark.parametrize("mean", [-300.0, -20.0, -1.0, -0.3, 0.3, 1.0, 20.0, 300.0])
@pytest.mark.parametrize("log_variance", [-11.0, -9.0, -3.0])
def test_gradients_far_out_are_finite_and_point_home(mean, log_variance):
    """In float32, where a difference of distribution functions is 0 and its logarithm's gradient lost."""
    x = torch.tensor([0, 1, 127, 128, 254, 255]) / 127.5 - 1
    means = torch.full((6,), mean, requires_grad=True)
    variances = torch.full((6,), log_variance, requires_grad=True)
    log_mass = discretized_gaussian_log_likelihood(x, means, variances)
    log_mass.sum().backward()
    assert log_mass.isfinite().all()
    assert means.grad.isfinite().all()
    assert variances.grad.isfinite().all()
    # far outside the bin: d/dmean of the nearest edge's -(edge - mean)^2 / 2 sigma^2
    nearest = x + torch.sign(mean - x) / 255
    z = ((nearest - mean) * math.exp(-log_variance / 2)).double()
    outermost = ((x < -0.999) & (mean < x)) | ((x > 0.999) & (mean > x))
    far = (z.abs() > 30) & ~outermost
    expected = ((nearest - mean) * math.exp(-log_variance)).double()
    torch.testing.assert_close(means.grad.double()[far], expected[far], rtol=5e-3, atol=0)
    torch.testing.assert_close(variances.grad.double()[far], z[far] ** 2 / 2, rtol=5e-3, atol=0)


# ---- L_{t-1} and L_T


def test_kl_of_normals_is_the_integral():
    rng = np.random.default_rng(0)
    for mean, log_variance, mean2, log_variance2 in rng.normal(size=(5, 4)):
        p = stats.norm(mean, np.exp(log_variance / 2))
        q = stats.norm(mean2, np.exp(log_variance2 / 2))
        exact = p.expect(lambda x, p=p, q=q: p.logpdf(x) - q.logpdf(x), lb=mean - 40, ub=mean + 40)
        ours = normal_kl(*(torch.tensor(v, dtype=torch.float64) for v in (mean, log_variance, mean2, log_variance2)))
        assert ours.item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0, -0.2, 1.1])
def test_log_variance_is_equation_15(fraction):
    """Nichol & Dhariwal (2021): Sigma = exp(v log beta + (1 - v) log beta tilde)."""
    process = process_of(num_train_timesteps=100)
    _, _, beta, log_tilde = reference_tables(build_scheduler(Diffusion(num_train_timesteps=100)).betas)
    ours = log_variance_of(process, torch.arange(100), fraction).flatten()
    np.testing.assert_allclose(ours.exp(), beta**fraction * np.exp(log_tilde) ** (1 - fraction), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_each_term_is_the_papers(schedule, fraction):
    """Ho et al. (2020), equations 5 and 13: a KL of normals, and at the first timestep the decoder; in bits."""
    settings = {"num_train_timesteps": 200, "beta_schedule": schedule}
    process = process_of(**settings)
    alpha_bar, before, beta, log_tilde = reference_tables(build_scheduler(Diffusion(**settings)).betas)
    t = torch.tensor([0, 0, 1, 2, 50, 198, 199])
    x0 = pixels(7, 2, 3, 2)
    rng = np.random.default_rng(1)
    x_t, predicted = rng.normal(size=(2, 7, 2, 3, 2))
    predicted[:2] = x0[:2].numpy() + rng.normal(size=(2, 2, 3, 2)) * 0.02
    log_variance = log_variance_of(process, t, fraction)
    ours = vlb_term(process, x0, torch.tensor(x_t), t, torch.tensor(predicted), log_variance)
    for n, step in enumerate(t.tolist()):
        a, b = alpha_bar[step], before[step]
        means = [
            (np.sqrt(b) * beta[step] * image + np.sqrt(1 - beta[step]) * (1 - b) * x_t[n]) / (1 - a)
            for image in (x0[n].numpy(), predicted[n])
        ]
        sigma2 = beta[step] ** fraction * np.exp(log_tilde[step]) ** (1 - fraction)
        if step == 0:
            gray = np.round((x0[n].numpy() + 1) * 127.5).astype(int)
            nats = [
                -exact_bin_log_mass(int(g), m, np.log(sigma2)) for g, m in zip(gray.flat, means[1].flat, strict=True)
            ]
        else:
            tilde = np.exp(log_tilde[step])
            nats = 0.5 * (np.log(sigma2 / tilde) + (tilde + (means[0] - means[1]) ** 2) / sigma2 - 1)
        assert ours[n].item() == pytest.approx(np.mean(nats) / np.log(2), rel=1e-6)


@pytest.mark.parametrize("T", [100, 1000])
def test_the_prior_term_is_what_is_left_of_the_image(T):
    process, x0 = process_of(num_train_timesteps=T), pixels(3, 1, 4, 4)
    left = np.prod(1 - build_scheduler(Diffusion(num_train_timesteps=T)).betas.double().numpy())
    exact = 0.5 * (left * x0.numpy() ** 2 + (1 - left) - 1 - np.log(1 - left)).mean((1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(prior_term(process, x0), exact, rtol=1e-6)


# ---- the bound


def gaussian_model(process, mean, variance, kind):
    """The denoiser that is right for pixels ~ N(mean, variance), by conjugacy: a normal prior, a normal likelihood."""
    signal2 = np.cumprod(np.exp(np.log1p(-process.log_beta.exp().numpy())))

    def predict(x_t, t):
        a, s = math.sqrt(signal2[t[0]]), math.sqrt(1 - signal2[t[0]])
        x0 = (mean / variance + a / s**2 * x_t) / (1 / variance + a**2 / s**2)
        epsilon = (x_t - a * x0) / s
        # its p(x_{t-1} | x_t) is normal, and as wide as beta tilde plus what x_0 is uncertain by: a fraction of eq. 15
        prediction = {"epsilon": epsilon, "sample": x0, "v_prediction": a * epsilon - s * x0}[kind]
        step = t[0].item()
        coefficient = process.mean_of_x0[step].item()
        wide = math.exp(process.log_posterior_variance[step].item()) * (step > 0)
        wide += coefficient**2 / (1 / variance + a**2 / s**2)
        low, high = process.log_posterior_variance[step].item(), process.log_beta[step].item()
        fraction = (math.log(wide) - low) / (high - low) if high > low else 0.0
        return prediction, torch.full((1, 1, 1, 1), fraction, dtype=x_t.dtype)

    return predict


def gray_normal(n, mean, deviation):
    drawn = np.random.default_rng(3).normal(mean, deviation, (n, 1, 8, 8))
    return torch.tensor((np.clip(np.round((drawn + 1) * 127.5), 0, 255)) / 127.5 - 1)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_model_that_is_right_reaches_the_entropy_of_the_data(kind):
    """For normal data the reverse process is normal, so with the right variances the bound is tight (up to L_T, the bins
    and the draws): it is -log2 of the bins' mass, an entropy that is known."""
    mean, deviation = 0.1, 0.2
    process, x0 = process_of(), gray_normal(24, mean, deviation)
    generator = torch.Generator().manual_seed(0)
    model = gaussian_model(process, mean, deviation**2, kind)
    bound, terms = bits_per_dimension(process, model, x0, kind, generator, clip=False)
    assert bound.shape == (24,)
    assert terms.shape == (24, 1001)
    torch.testing.assert_close(bound, terms.sum(dim=1))
    edges = np.concatenate([[-np.inf], np.arange(-1 + 1 / 255, 1, 2 / 255), [np.inf]])
    mass = np.diff(stats.norm(mean, deviation).cdf(edges))
    entropy = -np.log2(mass)[np.round((x0.numpy() + 1) * 127.5).astype(int)].mean()
    assert entropy == pytest.approx(np.log2(deviation * np.sqrt(2 * np.pi * np.e) * 127.5), abs=0.06)
    # the draws' error, from the spread of the images' bounds about their own entropies
    own = -np.log2(mass)[np.round((x0.numpy() + 1) * 127.5).astype(int)].mean((1, 2, 3))
    error = (bound.numpy() - own).std() / math.sqrt(24)
    assert abs(bound.mean().item() - entropy) < 0.01 + 4 * error
    assert error < 0.05


def test_every_term_of_the_bound_is_the_papers_at_the_drawn_noise():
    """Ho et al. (2020), equation 5, with the same generator's draws of x_t, and predictions clipped to [-1, 1]."""
    settings = {"num_train_timesteps": 100, "scale_betas": True}
    process, x0 = process_of(**settings), pixels(2, 1, 3, 3)
    alpha_bar, before, beta, log_tilde = reference_tables(build_scheduler(Diffusion(**settings)).betas)
    seen = []

    def predict(x_t, t):
        seen.append(t.tolist())
        return torch.sin(3 * x_t), torch.full((2, 1, 1, 1), 0.25, dtype=torch.float64)

    _, terms = bits_per_dimension(process, predict, x0, "epsilon", torch.Generator().manual_seed(5))
    assert seen == [[t, t] for t in range(100)]
    generator = torch.Generator().manual_seed(5)
    for t in range(100):
        z = torch.randn(x0.shape, generator=generator, dtype=torch.float64).numpy()
        a, b = alpha_bar[t], before[t]
        x_t = np.sqrt(a) * x0.numpy() + np.sqrt(1 - a) * z
        predicted = np.clip((x_t - np.sqrt(1 - a) * np.sin(3 * x_t)) / np.sqrt(a), -1, 1)
        weight = np.sqrt(b) * beta[t] / (1 - a)
        sigma2 = np.exp(0.25 * np.log(beta[t]) + 0.75 * log_tilde[t])
        if t:
            gap2 = (weight * (x0.numpy() - predicted)) ** 2
            nats = 0.5 * ((np.exp(log_tilde[t]) + gap2) / sigma2 - 1 + np.log(sigma2) - log_tilde[t])
        else:
            mean = weight * predicted + np.sqrt(1 - beta[0]) * (1 - b) / (1 - a) * x_t
            gray = np.round((x0.numpy() + 1) * 127.5).astype(int)
            nats = -np.vectorize(lambda g, m, s=sigma2: exact_bin_log_mass(int(g), m, np.log(s)))(gray, mean)
        np.testing.assert_allclose(terms[:, t], nats.mean((1, 2, 3)) / np.log(2), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(terms[:, 100], prior_term(process, x0))


def test_a_better_prediction_has_a_smaller_bound():
    process, x0 = process_of(num_train_timesteps=100, scale_betas=True), gray_normal(4, 0.0, 0.2)
    off = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bounds = []
    for error in (0.0, 0.02, 0.05, 0.1, 0.2):
        predict = lambda x_t, t, error=error: (x0 + error * off, 0.0)  # noqa: E731
        bound, terms = bits_per_dimension(process, predict, x0, "sample", torch.Generator().manual_seed(0), clip=False)
        bounds.append(bound)
        if error == 0:  # it knows the image: no term but the decoder's and the prior's
            assert terms[:, 1:-1].abs().max() < 1e-12
    for better, worse in pairwise(bounds):
        assert (better < worse).all()


# ---- latents, which have no bins


def latents(*shape):
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_density_is_the_normal_distributions():
    x, mean, log_variance = latents(3, 50)
    exact = stats.norm(mean.numpy(), np.exp(log_variance.numpy() / 2)).logpdf(x.numpy())
    np.testing.assert_allclose(gaussian_log_likelihood(x, mean, log_variance), exact, rtol=1e-10)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_the_first_term_of_latents_is_a_density_in_bits_and_the_others_are_those_of_pixels(fraction):
    process = process_of(num_train_timesteps=100)
    x0, predicted, epsilon = latents(3, 4, 2, 3, 3)
    t = torch.tensor([0, 0, 7, 99])
    x_t = process.q_sample(x0, t, epsilon)
    log_variance = log_variance_of(process, t, fraction)
    ours = vlb_term(process, x0, x_t, t, predicted, log_variance, discrete=False)
    deviation = np.exp(log_variance[:2].numpy() / 2)
    mean = predicted[:2].numpy()  # the posterior's at the first timestep is x_0 itself
    exact = -stats.norm(mean, deviation).logpdf(x0[:2].numpy()).mean(axis=(1, 2, 3)) / math.log(2)
    np.testing.assert_allclose(ours[:2], exact, rtol=1e-6)
    np.testing.assert_array_equal(ours[2:], vlb_term(process, x0, x_t, t, predicted, log_variance)[2:])


def test_bins_much_finer_than_the_variance_differ_from_a_density_by_their_width():
    process = process_of(num_train_timesteps=10, beta_start=0.1, beta_end=0.3)
    x0 = pixels(2, 1, 8, 8) * 0.9
    t, epsilon = torch.zeros(2, dtype=torch.long), torch.zeros_like(x0)
    arguments = process, x0, process.q_sample(x0, t, epsilon), t, 0.8 * x0, torch.tensor(-2.0).double()
    gap = vlb_term(*arguments) - vlb_term(*arguments, discrete=False)
    np.testing.assert_allclose(gap, -math.log2(2 / 255), atol=1e-3)
