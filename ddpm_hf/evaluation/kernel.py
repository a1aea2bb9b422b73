"""The kernel distance (KID with Inception's features; Bińkowski et al. 2018): a squared maximum mean discrepancy."""

import math

import numpy as np

from ddpm_hf.errors import UserError


def kernel_distance(
    real: np.ndarray, generated: np.ndarray, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """The mean of `squared_mmd` over random subsets, and its standard error.

    real (N, D), generated (M, D). Each pair of subsets has subset_size images of either set, drawn without replacement;
    min(1000, half the smaller count) unless told. The value is unbiased, so around 0 for equal distributions, sometimes
    below.

    The error says how far the value may be off for want of images and of subsets. With s the subsets' deviation, n the
    smaller count and m the subsets' size, its square is s^2 (m / (n - m) + 1 / subsets): the first term is the delete-d
    jackknife's (Shao & Wu 1989, equation 2.5) for the whole sets' value, the second is that of drawing so many subsets.
    It is too large rather than too small where the counts differ, and where the distributions are the same.
    """
    n = min(len(real), len(generated))
    if n < 4:
        raise UserError(f"a kernel distance needs at least 4 images in each set; the smaller has {n}")
    m = min(1000, n // 2) if subset_size is None else subset_size
    if not 2 <= m < n:
        raise UserError(
            f"subsets of {m} images cannot be drawn; choose from 2 to {n - 1}, below the smaller set's count"
        )
    if subsets < 2:
        raise UserError(f"a standard error needs at least 2 subsets, not {subsets}")
    random = np.random.default_rng(seed)
    values = np.array([squared_mmd(_subset(random, real, m), _subset(random, generated, m)) for _ in range(subsets)])
    error = values.std(ddof=1) * math.sqrt(m / (n - m) + 1 / subsets)
    return float(values.mean()), float(error)


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate (Gretton et al. 2012, equation 3), with the cubic kernel (a.b / D + 1)^3, in float64.

    x (N, D), y (M, D); at least two rows each.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * float(_kernel(x, y).mean())


def _subset(random: np.random.Generator, features: np.ndarray, size: int) -> np.ndarray:
    return features[random.choice(len(features), size, replace=False)]


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    k = x @ y.T
    k /= x.shape[1]
    k += 1
    return k * k * k


def _mean_of_pairs(x: np.ndarray) -> float:
    """Of the kernel between different rows."""
    k = _kernel(x, x)
    return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)))
