"""The Fréchet distance between two Gaussians (Dowson & Landau 1982), as FID takes it between features."""

import numpy as np

from ddpm_hf.errors import UserError


def frechet_distance(mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """|mean1 - mean2|^2 + trace(S1 + S2 - 2 (S1 S2)^1/2), in float64; 0 or more.

    Means (D,), covariances (D, D). With S = F F^T, the trace of the root is the nuclear norm of F1^T F2, which is that
    of S1^1/2 S2^1/2: symmetric roots only, where a general matrix square root turns complex or NaN if a covariance is
    singular, as it is with fewer samples than features. Raises `UserError` on values that are not finite.
    """
    mean1, mean2, s1, s2 = (np.asarray(a, dtype=np.float64) for a in (mean1, mean2, covariance1, covariance2))
    if not all(np.isfinite(a).all() for a in (mean1, mean2, s1, s2)):
        raise UserError("the features' mean or covariance is not finite, so that no Fréchet distance exists")
    f1, f2 = _factor(s1), _factor(s2)
    trace_of_root = np.linalg.norm(f1.T @ f2, ord="nuc")
    distance = np.square(mean1 - mean2).sum() + np.square(f1).sum() + np.square(f2).sum() - 2 * trace_of_root
    return max(float(distance), 0.0)  # only rounding makes it negative


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F (D, rank) with F F^T = covariance.

    Eigenvalues that are zero but for rounding are left out. The root would magnify theirs, 1e-16 of the largest, to
    1e-8 of the largest's, for each direction that is missing.
    """
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
