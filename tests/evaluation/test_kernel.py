from itertools import product

import numpy as np
import pytest

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.kernel import kernel_distance, squared_mmd


def gaussian(seed, n, size=6, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(n, size)) + shift).astype(np.float32)


def naive_mmd(x, y):
    """Bińkowski et al. 2018, equation 4, pair by pair."""

    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i, j in product(range(m), repeat=2) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i, j in product(range(n), repeat=2) if i != j) / (n * (n - 1))
    xy = sum(k(a, b) for a, b in product(x, y)) / (m * n)
    return xx + yy - 2 * xy


@pytest.mark.parametrize("counts", [(2, 2), (9, 14)])
def test_the_discrepancy_equals_a_sum_pair_by_pair(counts):
    x, y = gaussian(0, counts[0]), gaussian(1, counts[1], shift=0.5)
    assert squared_mmd(x, y) == pytest.approx(naive_mmd(x, y), rel=1e-12)


def test_the_distance_is_the_mean_over_subsets_drawn_without_replacement():
    x, y = gaussian(0, 30), gaussian(1, 40, shift=0.5)
    random = np.random.default_rng(7)
    draws = [
        naive_mmd(x[random.choice(30, 5, replace=False)], y[random.choice(40, 5, replace=False)]) for _ in range(4)
    ]
    value, error = kernel_distance(x, y, subsets=4, subset_size=5, seed=7)
    assert value == pytest.approx(np.mean(draws), rel=1e-12)
    assert error == pytest.approx(np.std(draws, ddof=1) * np.sqrt(5 / 25 + 1 / 4), rel=1e-12)


def test_subsets_are_half_of_a_small_set():
    x, y = gaussian(0, 30), gaussian(1, 21)
    assert kernel_distance(x, y) == kernel_distance(x, y, subsets=100, subset_size=10, seed=0)


def test_the_value_follows_from_the_seed():
    x, y = gaussian(0, 30), gaussian(1, 30)
    assert kernel_distance(x, y, seed=1) == kernel_distance(x, y, seed=1) != kernel_distance(x, y, seed=2)


def test_gaussians_have_their_closed_form():
    """In one dimension, of N(0, 1) and N(s, 1), E (x y + 1)^3 over independent pairs, by moments of each."""
    s = 0.7
    moments = {0.0: (1, 0, 1, 0), s: (1, s, 1 + s**2, s**3 + 3 * s)}

    def mean_kernel(a, b):
        return sum(c * p * q for c, p, q in zip((1, 3, 3, 1), moments[a], moments[b], strict=True))

    expected = mean_kernel(0.0, 0.0) + mean_kernel(s, s) - 2 * mean_kernel(0.0, s)
    value, error = kernel_distance(gaussian(0, 20_000, 1), gaussian(1, 20_000, 1, shift=s))
    assert abs(value - expected) < 3 * error < 0.15 * expected


@pytest.mark.parametrize("subset_size", [20, 100])
def test_the_standard_error_is_the_values_deviation_over_data_sets(subset_size):
    found = np.array(
        [
            kernel_distance(gaussian(2 * i, 200), gaussian(2 * i + 1, 200, shift=0.8), 40, subset_size, seed=i)
            for i in range(150)
        ]
    )
    deviation = found[:, 0].std(ddof=1)
    assert 0.85 < found[:, 1].mean() / deviation < 1.2


def test_two_samples_of_one_distribution_are_at_zero_within_the_error():
    found = np.array([kernel_distance(gaussian(2 * i, 200), gaussian(2 * i + 1, 200), 40) for i in range(60)])
    value, error = found.T
    assert abs(value.mean()) < 3 * value.std() / np.sqrt(len(value))  # unbiased
    assert (value < 0).any()
    assert (abs(value) < 2 * error).mean() > 0.95


def test_subsets_larger_than_a_set_are_refused():
    for size in (10, 11, 1):
        with pytest.raises(UserError, match=f"subsets of {size} images cannot be drawn; choose from 2 to 9"):
            kernel_distance(gaussian(0, 30), gaussian(1, 10), subset_size=size)


def test_tiny_sets_are_refused():
    with pytest.raises(UserError, match="at least 4 images in each set; the smaller has 3"):
        kernel_distance(gaussian(0, 30), gaussian(1, 3))
    with pytest.raises(UserError, match="at least 2 subsets"):
        kernel_distance(gaussian(0, 30), gaussian(1, 30), subsets=1)
    assert np.isfinite(kernel_distance(gaussian(0, 4), gaussian(1, 4))).all()
