"""The Fréchet distance between two Gaussians (Dowson & Landau 1982), as FID takes it between features."""

import numpy as np


def frechet_distance(mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """|mean1 - mean2|^2 + trace(S1 + S2 - 2 (S1 S2)^1/2), in float64.

    Means (D,), covariances (D, D). The trace of the root is the nuclear norm of S1^1/2 S2^1/2, which has symmetric
    roots only: a general matrix square root turns complex or NaN where a covariance is singular, as it is with
    fewer samples than features. Raises `ValueError` on values that are not finite.
    """
    mean1, mean2, s1, s2 = (np.asarray(a, dtype=np.float64) for a in (mean1, mean2, covariance1, covariance2))
    if not all(np.isfinite(a).all() for a in (mean1, mean2, s1, s2)):
        raise ValueError("the features' mean or covariance is not finite")
    trace_of_root = np.linalg.norm(_symmetric_root(s1) @ _symmetric_root(s2), ord="nuc")
    return float(np.square(mean1 - mean2).sum() + np.trace(s1) + np.trace(s2) - 2 * trace_of_root)


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T  # rounding leaves tiny negative eigenvalues
