"""The schedules and the forward process against the papers' equations, written again here in numpy's float64."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_hf.config import Diffusion
from ddpm_hf.diffusion.process import DiffusionProcess
from ddpm_hf.diffusion.samplers import SAMPLERS, build_sampler
from ddpm_hf.diffusion.schedule import build_scheduler, remaining_signal, schedule_warning

LENGTHS = [100, 200, 400, 500, 1000, 2000]


# ---- the papers' betas


def linear(T, start=1e-4, end=0.02):
    """Ho et al. (2020), section 4."""
    return np.array([start + (end - start) * t / (T - 1) for t in range(T)])


def scaled_linear(T, start=1e-4, end=0.02):
    """Rombach et al. (2022): linear in the standard deviation."""
    return np.array([(start**0.5 + (end**0.5 - start**0.5) * t / (T - 1)) ** 2 for t in range(T)])


def sigmoid(T, start=1e-4, end=0.02):
    """Xu et al. (2022), GeoDiff: from beta_start to beta_end along a sigmoid between -6 and 6."""
    return np.array([start + (end - start) / (1 + np.exp(6 - 12 * t / (T - 1))) for t in range(T)])


def from_alpha_bar(alpha_bar, T):
    u = np.arange(T + 1) / T
    f = alpha_bar(u)
    return np.clip(1 - f[1:] / f[:-1], 0, 0.999)


def cosine(T, s=0.008):
    """Nichol & Dhariwal (2021), equation 17."""
    return from_alpha_bar(lambda u: np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, T)


def sigmoid_alpha_bar(T, start=-3, end=3, tau=1):
    """Jabri et al. (2022), `sigmoid_schedule`; as a logistic function written with tanh."""

    def logistic(x):
        return (1 + np.tanh(x / 2)) / 2

    low, high = logistic(start / tau), logistic(end / tau)
    return from_alpha_bar(lambda u: (high - logistic((u * (end - start) + start) / tau)) / (high - low), T)


def zero_terminal_snr(betas):
    """Lin et al. (2024), algorithm 1."""
    signal = np.sqrt(np.cumprod(1 - betas))
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return 1 - np.concatenate([signal[:1], signal[1:] / signal[:-1]]) ** 2


def given(T):
    return np.random.default_rng(T).uniform(1e-4, 0.05, T)


def schedules():
    for T in LENGTHS:
        scale = {"num_train_timesteps": T, "scale_betas": True}
        for name, formula in [("linear", linear), ("scaled_linear", scaled_linear), ("sigmoid", sigmoid)]:
            yield f"{name}-{T}", {"num_train_timesteps": T, "beta_schedule": name}, formula(T)
            scaled = formula(T, 1e-4 * 1000 / T, 0.02 * 1000 / T)
            yield f"{name}-{T}-scaled", {**scale, "beta_schedule": name}, scaled
        ends = {"beta_start": 3e-4, "beta_end": 0.07}
        yield f"linear-{T}-ends", {"num_train_timesteps": T, **ends}, linear(T, 3e-4, 0.07)
        yield f"cosine-{T}", {"num_train_timesteps": T, "beta_schedule": "squaredcos_cap_v2"}, cosine(T)
        jabri = {"num_train_timesteps": T, "beta_schedule": "sigmoid_alpha_bar"}
        yield f"sigmoid_alpha_bar-{T}", jabri, sigmoid_alpha_bar(T)
        yield f"given-{T}", {"num_train_timesteps": T, "trained_betas": tuple(given(T))}, given(T)


SCHEDULES = list(schedules())
ALL = pytest.mark.parametrize(("settings", "betas"), [s[1:] for s in SCHEDULES], ids=[s[0] for s in SCHEDULES])


@ALL
def test_betas_are_the_formulas_to_float32(settings, betas):
    ours = build_scheduler(Diffusion(**settings)).betas
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), betas, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2", "sigmoid_alpha_bar"])
def test_zero_terminal_snr_leaves_no_signal_and_shifts_the_rest(name, T):
    """Lin et al. (2024), algorithm 1; Diffusers computes it in float32, so alpha bar is right to that and no more."""
    formula = {"linear": linear, "scaled_linear": scaled_linear, "sigmoid": sigmoid, "squaredcos_cap_v2": cosine}
    settings = {"num_train_timesteps": T, "beta_schedule": name, "prediction_type": "v_prediction"}
    scheduler = build_scheduler(Diffusion(**settings, rescale_betas_zero_snr=True))
    signal = np.sqrt(np.cumprod(1 - zero_terminal_snr(formula.get(name, sigmoid_alpha_bar)(T))))
    process = DiffusionProcess(scheduler.betas, dtype=torch.float64)
    np.testing.assert_allclose(process.signal.numpy(), signal, atol=2e-5)
    assert process.signal[-1] == 0
    assert process.noise[-1] == 1
    assert process.snr[-1] == 0
    assert remaining_signal(scheduler) == 0
    assert all(values.isfinite().all() for values in vars(process).values() if isinstance(values, torch.Tensor))


# ---- the forward process


PROCESSES = pytest.mark.parametrize(
    "settings",
    [pytest.param(settings, id=name) for name, settings, _ in SCHEDULES]
    + [
        pytest.param({**settings, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, id=f"{name}-zero")
        for name, settings, _ in SCHEDULES
        if name in ("linear-1000", "scaled_linear-200", "cosine-100", "sigmoid_alpha_bar-500")
    ],
)


@PROCESSES
def test_q_is_what_single_noising_steps_add_up_to(settings):
    """Ho et al. (2020), equation 2 applied t times, against equation 4's closed form."""
    scheduler = build_scheduler(Diffusion(**settings))
    process = DiffusionProcess(scheduler.betas, dtype=torch.float64)
    factor, variance, factors, variances = 1.0, 0.0, [], []
    for beta in scheduler.betas.double().numpy():
        factor, variance = factor * np.sqrt(1 - beta), (1 - beta) * variance + beta
        factors.append(factor)
        variances.append(variance)
    t = torch.arange(process.T)
    one, zero = torch.ones(process.T, 1, 1, 1, dtype=torch.float64), torch.zeros(process.T, 1, 1, 1).double()
    np.testing.assert_allclose(process.q_sample(one, t, zero).flatten(), factors, rtol=1e-6)
    np.testing.assert_allclose(process.q_sample(zero, t, one).flatten() ** 2, variances, rtol=1e-6)
    np.testing.assert_allclose(process.snr, np.square(factors) / variances, rtol=1e-6)


@PROCESSES
def test_the_posterior_is_the_joint_gaussian_conditioned_on_x_t(settings):
    """q(x_{t-1} | x_t, x_0) by precisions, prior times likelihood, against Ho et al. (2020), equation 7."""
    scheduler = build_scheduler(Diffusion(**settings))
    process = DiffusionProcess(scheduler.betas, dtype=torch.float64)
    rng = np.random.default_rng(0)
    betas = scheduler.betas.double().numpy()
    x0, x_t = rng.normal(size=(2, process.T))
    t = torch.arange(process.T)
    mean = process.posterior_mean(torch.tensor(x0).view(-1, 1, 1, 1), torch.tensor(x_t).view(-1, 1, 1, 1), t).flatten()
    signal, variance = 1.0, 0.0  # of q(x_{t-1} | x_0), the prior of x_{t-1}
    for i, beta in enumerate(betas):
        if i == 0:  # the prior is the image itself
            assert mean[0].item() == pytest.approx(x0[0], rel=1e-6)
        else:
            precision = 1 / variance + (1 - beta) / beta
            expected = (signal * x0[i] / variance + np.sqrt(1 - beta) * x_t[i] / beta) / precision
            assert mean[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
            assert process.log_posterior_variance[i].exp().item() == pytest.approx(1 / precision, rel=1e-6)
        signal, variance = signal * np.sqrt(1 - beta), (1 - beta) * variance + beta
    np.testing.assert_allclose(process.log_beta.exp(), betas, rtol=1e-6)
    # Nichol & Dhariwal's code: the first step, which has no posterior, takes the second's variance
    assert process.log_posterior_variance[0] == process.log_posterior_variance[1]


@PROCESSES
def test_the_target_means_the_image(settings):
    """Salimans & Ho (2022), appendix D: v = alpha epsilon - sigma x, so x = alpha z - sigma v; equation 4 for epsilon."""
    scheduler = build_scheduler(Diffusion(**settings))
    process = DiffusionProcess(scheduler.betas, dtype=torch.float64)
    t = torch.arange(process.T)
    x0, epsilon = torch.randn(2, process.T, 2, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = process.q_sample(x0, t, epsilon)
    alpha_bar = np.cumprod(1 - scheduler.betas.double().numpy())[:, None, None, None]
    v = np.sqrt(alpha_bar) * epsilon.numpy() - np.sqrt(1 - alpha_bar) * x0.numpy()
    for kind, expected in {"epsilon": epsilon.numpy(), "sample": x0.numpy(), "v_prediction": v}.items():
        target = process.target(kind, x0, t, epsilon)
        np.testing.assert_allclose(target, expected, rtol=1e-6, atol=1e-12)
        if kind == "epsilon" and settings.get("rescale_betas_zero_snr"):
            continue  # of pure noise, epsilon says nothing
        scale = np.sqrt(alpha_bar) if kind == "epsilon" else 1.0  # divided by which, rounding is as much larger
        back = process.to_x0(kind, target, x_t, t).numpy()
        np.testing.assert_allclose(back * scale, x0.numpy() * scale, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("T", [100, 1000])
def test_the_tables_are_right_to_float32_where_float32_products_are_not(T):
    scheduler = build_scheduler(Diffusion(num_train_timesteps=T))
    process = DiffusionProcess(scheduler.betas)
    beta = scheduler.betas.double().numpy().astype(np.longdouble)
    alpha_bar = np.cumprod(1 - beta)
    before = np.concatenate([[1], alpha_bar[:-1]])
    exact = {
        "signal": np.sqrt(alpha_bar),
        "noise": np.sqrt(1 - alpha_bar),
        "snr": alpha_bar / (1 - alpha_bar),
        "mean_of_x0": np.sqrt(before) * beta / (1 - alpha_bar),
        "mean_of_x_t": np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar),
        "log_beta": np.log(beta),
    }
    for name, values in exact.items():
        table = getattr(process, name)
        assert table.dtype == torch.float32
        np.testing.assert_allclose(table.double().numpy(), values.astype(float), rtol=1.2e-7, err_msg=name)
    variance = (beta * (1 - before) / (1 - alpha_bar))[1:]
    np.testing.assert_allclose(process.log_posterior_variance[1:], np.log(variance).astype(float), rtol=1.2e-7)
    naive = (1 - scheduler.alphas_cumprod).sqrt().double().numpy() / exact["noise"].astype(float)
    assert np.abs(naive - 1).max() > {100: 5e-6, 1000: 5e-5}[T]


# ---- what the user is told, and what is saved


@pytest.mark.parametrize(
    ("settings", "signal"),
    [({"num_train_timesteps": 100}, "0.60"), ({"num_train_timesteps": 200}, "0.36"), ({}, None)],
)
def test_a_schedule_that_never_reaches_noise_is_warned_of(settings, signal):
    T = settings.get("num_train_timesteps", 1000)
    left = np.sqrt(np.prod(1 - linear(T)))
    assert remaining_signal(build_scheduler(Diffusion(**settings))) == pytest.approx(left, rel=1e-5)
    warning = schedule_warning(Diffusion(**settings))
    if signal is None:
        assert left < 0.05
        assert warning is None
        return
    assert f"{left:.2f}" == signal
    assert f"sqrt(alpha_bar_T) = {signal} of the image" in warning
    assert "\n" not in warning
    scaled = np.sqrt(np.prod(1 - linear(T, 1e-4 * 1000 / T, 0.02 * 1000 / T)))
    assert f"diffusion.scale_betas: true (leaves {scaled:.4f})" in warning
    assert schedule_warning(Diffusion(**settings, scale_betas=True)) is None
    assert "rescale_betas_zero_snr" not in warning  # which epsilon cannot have
    v = Diffusion(**settings, prediction_type="v_prediction")
    assert "diffusion.rescale_betas_zero_snr: true (leaves none)" in schedule_warning(v)
    assert schedule_warning(v.model_copy(update={"rescale_betas_zero_snr": True})) is None


def test_the_warning_proposes_only_what_can_be_had():
    assert "scale_betas" not in schedule_warning(Diffusion(num_train_timesteps=15))  # its last beta would be 1.3
    short = Diffusion(num_train_timesteps=3, trained_betas=(0.1, 0.1, 0.1))
    assert schedule_warning(short).endswith("what mends it: another schedule")
    scaled = Diffusion(num_train_timesteps=100, beta_end=0.001, beta_start=1e-4, scale_betas=True)
    assert "scale_betas" not in schedule_warning(scaled)  # it is on already
    for name in ("squaredcos_cap_v2", "sigmoid_alpha_bar"):
        assert schedule_warning(Diffusion(num_train_timesteps=20, beta_schedule=name)) is None


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    "name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "sigmoid_alpha_bar", "given"]
)
def test_the_scheduler_and_every_sampler_carry_the_schedule_through_save_and_load(name, zero_snr, tmp_path):
    kind = "v_prediction" if zero_snr else "epsilon"
    chosen = {"trained_betas": tuple(given(200))} if name == "given" else {"beta_schedule": name}
    settings = {"num_train_timesteps": 200, "prediction_type": kind, "rescale_betas_zero_snr": zero_snr, **chosen}
    scheduler = build_scheduler(Diffusion(**settings))
    scheduler.save_pretrained(tmp_path / "trained")
    back = DDPMScheduler.from_pretrained(tmp_path / "trained")
    assert torch.equal(back.betas, scheduler.betas)
    assert torch.equal(back.alphas_cumprod, scheduler.alphas_cumprod)
    assert {k: v for k, v in back.config.items() if k[0] != "_"} == {k: v for k, v in scheduler.config.items() if k[0] != "_"}  # fmt: skip
    for sampler in SAMPLERS:
        for trained in (scheduler, back):  # in memory, and from a file that no longer tells what was a default
            built = build_sampler(sampler, trained)
            built.save_pretrained(tmp_path / sampler)
            loaded = type(built).from_pretrained(tmp_path / sampler)
            for one in (built, loaded):
                near = {"rtol": 0, "atol": 0} if not zero_snr else {"rtol": 1e-4, "atol": 2e-7}
                torch.testing.assert_close(one.alphas_cumprod, scheduler.alphas_cumprod, **near)
                assert one.config.prediction_type == kind
                assert one.config.timestep_spacing == "trailing"
        saved = json.loads((tmp_path / sampler / "scheduler_config.json").read_text())
        assert saved["num_train_timesteps"] == 200
