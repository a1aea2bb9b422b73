"""The score of class probabilities (the Inception Score with Inception's; Salimans et al. 2016)."""

from itertools import pairwise

import numpy as np

from ddpm_hf.errors import UserError


def inception_score(probabilities: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of each split: their mean and their deviation (divisor: splits).

    probabilities (N, K), rows sum to 1. Splits are of successive images, as even as can be, as in the paper's code. The
    score is between 1 and K, and no higher than the images of a split.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if len(p) < splits:
        raise UserError(f"a score over {splits} splits needs at least as many images; there are {len(p)}")
    edges = [i * len(p) // splits for i in range(splits + 1)]
    scores = [np.exp(_mean_divergence(p[a:b])) for a, b in pairwise(edges)]
    return float(np.mean(scores)), float(np.std(scores))


def _mean_divergence(p: np.ndarray) -> float:
    """Mean KL divergence, in nats, of the rows from their mean; 0 log 0 is 0."""
    ratio = np.divide(p, p.mean(axis=0), out=np.ones_like(p), where=p > 0)
    return float((p * np.log(ratio)).sum(axis=1).mean())
