"""Every objective's value and gradient against the papers' equations, written again here in numpy.

The reference's gradients are complex steps: f'(y) = Im f(y + ih) / h, exact to rounding, since each loss is a mean over
elements of a function of that element of the denoiser's output alone.
"""

import math

import numpy as np
import pytest
import torch
from scipy import special

from ddpm_hf.config import Condition, Diffusion, Recipe
from ddpm_hf.diffusion.objective import Objective
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.errors import UserError

CPU = torch.device("cpu")
KINDS = ["epsilon", "sample", "v_prediction"]


class Output:
    def __init__(self, sample):
        self.sample = sample


def objective(num_classes=None, dropout=0.1, gather=lambda tensor: tensor, dtype=torch.float32, **settings):
    diffusion, condition = Diffusion(**settings), Condition(num_classes=num_classes, dropout=dropout)
    return Objective(diffusion, condition, build_scheduler(diffusion), CPU, gather, dtype)


# ---- the reference


def bin_log_mass(x, mean, log_variance):
    """Ho et al. (2020), equation 13; `mean` and `log_variance` may be complex."""
    deviation = np.exp(log_variance / 2)
    upper, lower = (x + 1 / 255 - mean) / deviation, (x - 1 / 255 - mean) / deviation
    mirrored = lower.real > 0  # the same mass on the other side of zero, where differences are of small numbers
    high, low = np.where(mirrored, -lower, upper), np.where(mirrored, -upper, lower)
    inside = special.ndtr(high) - special.ndtr(low)
    return np.log(np.where(x < -0.999, special.ndtr(upper), np.where(x > 0.999, special.ndtr(-lower), inside)))


def losses(settings, betas, x0, t, epsilon, prediction, fraction):
    """Each element's share of the loss, whose mean over an image is the loss of Algorithm 1's line 5.

    Returns L_simple's and L_vlb's, the latter as if its weight were one.
    """
    kind = settings["prediction_type"]
    alpha_bar = np.cumprod(1 - betas)
    before, beta = np.append(1.0, alpha_bar[:-1])[t], betas[t]
    tilde = betas[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    tilde = np.append(tilde[0], tilde)[t]  # Nichol & Dhariwal's code: the first is the second's
    a, b, beta, tilde = (v.reshape(-1, 1, 1, 1) for v in (alpha_bar[t], before, beta, tilde))
    x_t = a**0.5 * x0 + (1 - a) ** 0.5 * epsilon  # Ho et al. (2020), equation 4
    v = a**0.5 * epsilon - (1 - a) ** 0.5 * x0  # Salimans & Ho (2022), section 4
    simple = (prediction - {"epsilon": epsilon, "sample": x0, "v_prediction": v}[kind]) ** 2
    if settings.get("min_snr_gamma"):  # Hang et al. (2023), equations 4 to 6
        snr, gamma = a / (1 - a), settings["min_snr_gamma"]
        clipped = np.minimum(snr, gamma)
        simple = simple * {"epsilon": clipped / snr, "sample": clipped, "v_prediction": clipped / (snr + 1)}[kind]
    predicted = {
        "epsilon": lambda: (x_t - (1 - a) ** 0.5 * prediction) / a**0.5,
        "sample": lambda: prediction,
        "v_prediction": lambda: a**0.5 * x_t - (1 - a) ** 0.5 * prediction,
    }[kind]()

    def mean(image):  # Ho et al. (2020), equation 7
        return b**0.5 * beta / (1 - a) * image + (1 - beta) ** 0.5 * (1 - b) / (1 - a) * x_t

    log_variance = fraction * np.log(beta) + (1 - fraction) * np.log(tilde)  # Nichol & Dhariwal (2021), equation 15
    gap = mean(x0) - mean(predicted)
    kl = 0.5 * (log_variance - np.log(tilde) - 1 + (tilde + gap**2) * np.exp(-log_variance))
    decoder = -bin_log_mass(x0, mean(predicted), log_variance + 0 * predicted)
    terms = np.where((t == 0).reshape(-1, 1, 1, 1), decoder, kl)
    return simple, terms * len(betas) / math.log(2)


def complex_step(function, at, h=1e-30):
    return function(at + 1j * h).imag / h


def allowed(settings):
    """Whether ddpm_hf.config lets these settings be trained with."""
    try:
        others = {"data": {"source": "digits", "resolution": 32}, "train": {"max_steps": 1}, "track": {"trackers": ()}}
        Recipe(**others, diffusion=settings)
    except ValueError as error:
        assert "type=contradiction" in str(error)
        return False
    return True


def combinations():
    variances = [{"variance_type": v} for v in ("fixed_small", "fixed_large", "learned_range")]
    variances += [{"variance_type": "fixed_exponent", "variance_exponent": e} for e in (0.0, 0.3, 1.0)]
    kinds_of_loss = [{"loss": "mse"}, {"loss": "hybrid"}, {"loss": "hybrid", "vlb_weight": 0.05}, {"loss": "vlb"}]
    for kind in KINDS:
        for variance in variances:
            for loss in kinds_of_loss:
                for gamma in ({}, {"min_snr_gamma": 5.0}, {"min_snr_gamma": 0.7}):
                    settings = {"prediction_type": kind, **variance, **loss, **gamma}
                    if allowed(settings):
                        yield settings


COMBINATIONS = list(combinations())


def test_the_combinations_are_those_that_make_sense():
    assert len(COMBINATIONS) == 3 * (5 * 3 + 2 * 3 + 6)  # fixed with mse, learned with hybrid, all with vlb
    assert not allowed({"loss": "mse", "variance_type": "learned_range"})
    assert not allowed({"loss": "hybrid"})
    assert not allowed({"loss": "vlb", "min_snr_gamma": 5})


@pytest.mark.parametrize("settings", COMBINATIONS, ids=lambda s: "-".join(str(v) for v in s.values()))
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_value_and_gradient(settings, schedule):
    settings = {"num_train_timesteps": 100, "beta_schedule": schedule, **settings}
    ours = objective(dtype=torch.float64, **settings)
    betas = build_scheduler(Diffusion(**settings)).betas.double().numpy()
    rng = np.random.default_rng(0)
    t = np.array([0, 0, 1, 2, 7, 50, 98, 99])
    gray = rng.integers(0, 256, (8, 2, 2, 3))
    gray[0] = np.array([0, 255, 1, 254, 128, 0, 255, 7, 200, 60, 0, 255]).reshape(2, 2, 3)
    x0, epsilon = gray / 127.5 - 1, rng.normal(size=gray.shape)
    alpha_bar = np.cumprod(1 - betas)[t].reshape(-1, 1, 1, 1)
    right = {
        "epsilon": epsilon,
        "sample": x0,
        "v_prediction": alpha_bar**0.5 * epsilon - (1 - alpha_bar) ** 0.5 * x0,
    }[settings["prediction_type"]]
    prediction = right + rng.normal(size=gray.shape) * 0.05
    learned = settings["variance_type"] == "learned_range"
    variance = rng.uniform(-1.2, 1.2, gray.shape)  # the network's output is not bounded
    exponent = settings.get("variance_exponent")
    fraction = {"fixed_small": 0.0, "fixed_large": 1.0, "fixed_exponent": exponent, "learned_range": (variance + 1) / 2}
    fraction = fraction[settings["variance_type"]]

    output = torch.tensor(np.concatenate([prediction, variance], axis=1) if learned else prediction, requires_grad=True)
    seen = {}

    def denoiser(x_t, steps):
        seen.update(x_t=x_t, t=steps)
        return Output(output)

    loss = ours.loss_at(denoiser, torch.tensor(x0), torch.tensor(t), torch.tensor(epsilon))
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    np.testing.assert_allclose(seen["x_t"], alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * epsilon, rtol=1e-6)
    np.testing.assert_array_equal(seen["t"], t)

    reference = lambda p, f: losses(settings, betas, x0, t, epsilon, p, f)  # noqa: E731
    weight = settings.get("vlb_weight", 0.001)
    simple, vlb = reference(prediction, fraction)
    slope_simple = complex_step(lambda p: reference(p, fraction)[0], prediction)
    slope_vlb = complex_step(lambda p: reference(p, fraction)[1], prediction)
    slope_variance = complex_step(lambda f: reference(prediction, f)[1], np.broadcast_to(fraction, gray.shape)) / 2
    value, of_prediction, of_variance = {
        "mse": (simple, slope_simple, 0 * slope_variance),
        "vlb": (vlb, slope_vlb, slope_variance),
        # the mean is learned by L_simple alone (Nichol & Dhariwal 2021, section 3.1)
        "hybrid": (simple + weight * vlb, slope_simple, weight * slope_variance),
    }[settings["loss"]]
    size = gray[0].size
    assert loss.shape == (8,)
    np.testing.assert_allclose(loss.detach(), value.mean((1, 2, 3)), rtol=1e-6)
    scale = np.abs(of_prediction).max((1, 2, 3), keepdims=True) / size
    got = gradient[:, :2].numpy()
    assert (np.abs(got - of_prediction / size) <= 1e-6 * np.abs(of_prediction / size) + 1e-9 * scale).all()
    if learned:
        assert np.abs(of_variance).max() > 0
        scale = np.abs(of_variance).max((1, 2, 3), keepdims=True) / size
        got = gradient[:, 2:].numpy()
        assert (np.abs(got - of_variance / size) <= 1e-6 * np.abs(of_variance / size) + 1e-9 * scale).all()


def test_zero_terminal_snr_is_learned_from_without_division():
    """Lin et al. (2024): at the last timestep x_t is the noise alone; v = -x_0 there, and min-SNR gives it no weight."""
    for kind, sign in (("v_prediction", -1), ("sample", 1)):
        for gamma in (None, 5.0):
            settings = {"prediction_type": kind, "rescale_betas_zero_snr": True, "min_snr_gamma": gamma}
            ours = objective(dtype=torch.float64, **settings)
            x0, epsilon = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            guess = torch.full((3, 1, 4, 4), 0.3, dtype=torch.float64, requires_grad=True)

            def denoiser(x_t, t, epsilon=epsilon, guess=guess):
                torch.testing.assert_close(x_t, epsilon, rtol=1e-9, atol=1e-9)
                return Output(guess)

            loss = ours.loss_at(denoiser, x0, torch.full((3,), 999), epsilon)
            expected = (guess - sign * x0).square().mean(dim=(1, 2, 3)) * (gamma is None)
            torch.testing.assert_close(loss, expected)
            (gradient,) = torch.autograd.grad(loss.sum(), guess)
            assert gradient.isfinite().all()


# ---- drawing: noise, timesteps, labels


def linear_betas(T=1000, start=1e-4, end=0.02):
    return np.linspace(start, end, T, dtype=np.float64)


def cosine_betas(T=1000, s=0.008):
    """Nichol & Dhariwal (2021), equation 17."""

    def f(t):
        return np.cos((t / T + s) / (1 + s) * np.pi / 2) ** 2

    return np.minimum(1 - f(np.arange(1, T + 1)) / f(np.arange(T)), 0.999)


@pytest.mark.parametrize(
    ("settings", "betas"),
    [
        ({}, linear_betas()),
        ({"num_train_timesteps": 100}, linear_betas(100)),
        ({"beta_start": 2e-4}, linear_betas(start=2e-4)),
        ({"beta_schedule": "scaled_linear"}, np.linspace(1e-2, 0.02**0.5, 1000) ** 2),
        ({"beta_schedule": "squaredcos_cap_v2"}, cosine_betas()),
    ],
)
def test_x_t_and_the_loss(settings, betas):
    ours = objective(**settings)
    alpha_bar = np.cumprod(1 - betas)  # equation 4
    x0 = torch.randn(64, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    seen = {}

    def denoiser(x_t, t):
        seen.update(x_t=x_t, t=t)
        return Output(torch.zeros_like(x_t))

    torch.manual_seed(7)
    loss = ours(denoiser, x0)
    t = seen["t"].numpy()
    assert t.dtype == np.int64
    assert t.min() >= 0
    assert t.max() < len(betas)
    # the noise that was added, from x_t alone (equation 4): what a zero prediction is compared with
    a = alpha_bar[t][:, None, None, None]
    epsilon = (seen["x_t"].double().numpy() - np.sqrt(a) * x0.double().numpy()) / np.sqrt(1 - a)
    large = np.sqrt(1 - alpha_bar[t]) > 0.05  # where the division does not blow up float32 rounding
    np.testing.assert_allclose(loss.numpy()[large], (epsilon**2).mean((1, 2, 3))[large], rtol=1e-4)
    assert abs(epsilon[large].mean()) < 0.05
    assert abs(epsilon[large].std() - 1) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_has_no_loss(kind):
    ours = objective(prediction_type=kind)
    x0 = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

    def knows_x0(x_t, t):
        a, x = alpha_bar[t].view(-1, 1, 1, 1), x0.double()
        epsilon = (x_t.double() - a.sqrt() * x) / (1 - a).sqrt()
        v = a.sqrt() * epsilon - (1 - a).sqrt() * x
        return Output({"epsilon": epsilon, "sample": x, "v_prediction": v}[kind].float())

    torch.manual_seed(0)
    assert ours(knows_x0, x0).max() < 1e-6
    assert ours.validation(knows_x0, x0).max() < 1e-6


@pytest.mark.parametrize("validating", [False, True])
def test_timesteps_are_uniform(validating):
    ours = objective(num_train_timesteps=10)
    counts = np.zeros(10)

    def denoiser(x_t, t):
        np.add.at(counts, t.numpy(), 1)
        return Output(x_t)

    torch.manual_seed(0)
    for _ in range(20):
        (ours.validation if validating else ours)(denoiser, torch.zeros(500, 1, 1, 1))
    chi2 = ((counts - 1000) ** 2 / 1000).sum()
    assert chi2 < 27.9  # 0.999 quantile of chi-squared with 9 degrees of freedom


def test_only_the_denoiser_runs_under_autocast(tiny_unet):
    ours = objective()
    seen = []

    def denoiser(x_t, t):
        seen.append(x_t.dtype)
        output = tiny_unet(x_t, t)
        seen.append(output.sample.dtype)
        assert torch.is_autocast_enabled("cpu")
        return output

    for call in (ours, ours.validation):
        loss = call(denoiser, torch.zeros(2, 1, 8, 8), autocast=lambda: torch.autocast("cpu", torch.bfloat16))
        assert seen == [torch.float32, torch.bfloat16]
        assert loss.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        seen.clear()


def labels_seen(ours, labels, call, times=1):
    seen = []

    def denoiser(x_t, t, class_labels):
        seen.append(class_labels)
        return Output(torch.zeros_like(x_t))

    for _ in range(times):
        call(denoiser, torch.zeros(len(labels), 1, 1, 1), labels)
    return torch.stack(seen)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_labels_are_dropped_image_by_image_at_the_given_rate(dropout):
    """Ho & Salimans (2022), algorithm 1; the null class has the id after the last."""
    ours = objective(num_classes=7, dropout=dropout)
    labels = torch.arange(4000) % 7
    torch.manual_seed(0)
    seen = labels_seen(ours, labels, ours, times=5)
    dropped = seen == 7
    assert seen.dtype == torch.int64
    assert (seen[~dropped] == labels.expand(5, -1)[~dropped]).all()
    n = seen.numel()
    bound = 4 * math.sqrt(n * dropout * (1 - dropout))  # four standard deviations of a binomial
    assert abs(dropped.sum().item() - n * dropout) < bound
    for label in range(7):  # whatever the label
        here = dropped[:, labels == label]
        assert abs(here.float().mean().item() - dropout) < 4 * math.sqrt(dropout * (1 - dropout) / here.numel())
    # each image on its own: neighbours in a batch and the same place in the next batch agree as often as by chance
    agree = dropout**2 + (1 - dropout) ** 2
    for same in (dropped[:, 1:] == dropped[:, :-1], dropped[1:] == dropped[:-1]):
        assert abs(same.float().mean().item() - agree) < 4 * 2 * math.sqrt(agree * (1 - agree) / same.numel())


def test_without_dropout_and_in_validation_every_label_stays():
    labels = torch.arange(500) % 3
    torch.manual_seed(0)
    never = objective(num_classes=3, dropout=0.0)
    assert (labels_seen(never, labels, never, times=3) == labels).all()
    often = objective(num_classes=3, dropout=0.9)
    assert (labels_seen(often, labels, often.validation, times=3) == labels).all()
    assert (labels_seen(often, labels, often) == 3).float().mean() > 0.8


def test_an_unconditional_denoiser_hears_of_no_labels():
    ours = objective(num_classes=None)
    calls = []

    def denoiser(*args, **kwargs):
        calls.append((len(args), kwargs))
        return Output(torch.zeros_like(args[0]))

    for labels in (None, torch.zeros(4, dtype=torch.int64)):
        ours(denoiser, torch.zeros(4, 1, 2, 2), labels)
        ours.validation(denoiser, torch.zeros(4, 1, 2, 2), labels)
    assert calls == [(2, {})] * 4


def test_validation_draws_uniformly_and_leaves_the_importance_history_alone():
    ours = objective(num_train_timesteps=5, loss="vlb", timestep_sampling="importance")
    drawn = []

    def denoiser(x_t, t):
        drawn.append(t)
        # wrong by far at timestep 3, so that importance draws it most of the time
        return Output(torch.where((t == 3).view(-1, 1, 1, 1), 300.0, torch.zeros_like(x_t)))

    torch.manual_seed(0)
    while not (ours.timesteps.seen >= 10).all():
        ours(denoiser, torch.zeros(64, 1, 2, 2))
    before = {name: value.clone() for name, value in ours.timesteps.state().items()}
    drawn.clear()
    for _ in range(10):
        ours.validation(denoiser, torch.zeros(500, 1, 2, 2))
    counts = torch.cat(drawn).bincount(minlength=5).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 18.5  # 0.999 quantile of chi-squared with 4 degrees of freedom
    after = ours.timesteps.state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    drawn.clear()
    ours(denoiser, torch.zeros(500, 1, 2, 2))
    assert (drawn[0] == 3).float().mean() > 0.9
    assert not torch.equal(before["seen"], ours.timesteps.state()["seen"])


def test_importance_weighs_each_loss_by_how_rarely_its_timestep_is_drawn():
    """Nichol & Dhariwal (2021), equation 18: the loss over T p_t, and the history keeps it as it was."""
    ours = objective(num_train_timesteps=3, loss="vlb", timestep_sampling="importance", dtype=torch.float64)
    ours.timesteps.seen.fill_(10)
    ours.timesteps.losses[:, :10] = torch.tensor([[1.0], [2.0], [5.0]])
    p = np.array([1, 2, 5]) / 8 * 0.999 + 0.001 / 3
    drawn = {}

    def denoiser(x_t, t):
        drawn["t"], drawn["x_t"] = t, x_t
        return Output(torch.zeros_like(x_t))

    torch.manual_seed(0)
    x0 = torch.zeros(8, 1, 2, 2, dtype=torch.float64)
    weighted = ours(denoiser, x0)
    t = drawn["t"]
    epsilon = drawn["x_t"] / ours.process.noise[t].view(-1, 1, 1, 1)
    plain = ours.loss_at(denoiser, x0, t, epsilon)
    torch.testing.assert_close(weighted, plain / torch.tensor(3 * p)[t], rtol=1e-5, atol=0)
    for step in range(3):
        kept = plain[t == step][-10:].float()
        history = ours.timesteps.losses[step, :10]
        assert all((history - value).abs().min() <= 1e-5 * value for value in kept)


@pytest.mark.parametrize(
    ("settings", "fraction"),
    [
        ({"variance_type": "fixed_small"}, 0.0),
        ({"variance_type": "fixed_large"}, 1.0),
        ({"variance_type": "fixed_exponent", "variance_exponent": 0.3}, 0.3),
        ({"variance_type": "learned_range", "loss": "hybrid"}, "learned"),
    ],
)
def test_bits_per_dimension_adds_up_the_terms_of_the_vlb_loss(settings, fraction):
    """Without dropping labels; L_vlb's estimate is T times one of these terms, where no prediction is clipped."""
    ours = objective(num_classes=3, dropout=0.9, num_train_timesteps=20, scale_betas=False, beta_end=0.4,
                     beta_start=0.01, prediction_type="sample", dtype=torch.float64, **settings)  # fmt: skip
    gray = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 3))
    x0, labels = torch.tensor(gray / 127.5 - 1), torch.tensor([2, 0])
    seen = []

    def denoiser(x_t, t, class_labels):
        seen.append((t.tolist(), class_labels.tolist()))
        mean = 0.9 * torch.sin(2 * x_t)
        return Output(torch.cat([mean, torch.cos(3 * x_t)], dim=1) if fraction == "learned" else mean)

    bound, terms = ours.bits_per_dimension(denoiser, x0, labels, torch.Generator().manual_seed(1))
    assert seen == [([t, t], [2, 0]) for t in range(20)]
    torch.testing.assert_close(bound, terms.sum(dim=1))
    betas = build_scheduler(ours.diffusion).betas.double().numpy()
    alpha_bar = np.cumprod(1 - betas)
    generator = torch.Generator().manual_seed(1)
    for t in range(20):
        epsilon = torch.randn(x0.shape, generator=generator, dtype=torch.float64).numpy()
        x_t = alpha_bar[t] ** 0.5 * x0.numpy() + (1 - alpha_bar[t]) ** 0.5 * epsilon
        of_variance = (np.cos(3 * x_t) + 1) / 2 if fraction == "learned" else fraction
        kind = {"prediction_type": "sample"}
        _, vlb = losses(kind, betas, x0.numpy(), np.array([t, t]), epsilon, 0.9 * np.sin(2 * x_t), of_variance)
        np.testing.assert_allclose(terms[:, t], vlb.mean((1, 2, 3)) / 20, rtol=1e-6)


# ---- latents and the null class


@pytest.mark.parametrize("loss", ["vlb", "hybrid"])
def test_latents_have_a_density_where_pixels_have_bins(loss):
    variance = {"loss": loss, "variance_type": "learned_range", "num_train_timesteps": 50}
    diffusion = Diffusion(**variance)
    of_latents = Objective(diffusion, Condition(), build_scheduler(diffusion, False), CPU, discrete=False)
    of_pixels = objective(**variance)
    x0, epsilon = 3 * torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 10, 49])

    def denoiser(x, t):
        return Output(torch.cat([x, torch.zeros_like(x)], dim=1))

    ours, theirs = (each.loss_at(denoiser, x0, t, epsilon) for each in (of_latents, of_pixels))
    assert ours.isfinite().all()
    assert (ours[1:] == theirs[1:]).all()
    assert ours[0] != theirs[0]
    with pytest.raises(UserError, match="this model works on latents"):
        of_latents.bits_per_dimension(denoiser, x0)


def test_validation_takes_the_null_class_for_all():
    asked = []

    def denoiser(x, t, class_labels):
        asked.append(class_labels.tolist())
        return Output(torch.zeros_like(x))

    loss = objective(num_classes=3, dropout=0.5).validation(denoiser, torch.zeros(5, 1, 4, 4), torch.full((5,), 3))
    assert asked == [[3] * 5]
    assert loss.shape == (5,)
