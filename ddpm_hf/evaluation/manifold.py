"""Fidelity and variety apart: precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

A set's manifold is the union of balls around its images' features, each reaching to the k-th nearest other image of the
set, the border included.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ddpm_hf.errors import UserError

MOST_IMAGES = 100_000  # of a reference; the work grows with their square, at ImageNet's 1.3 million to days
SHOWN = 5000  # images from which on a bar shows how far it is
BLOCK = 2048  # rows whose distances are in memory at once: 32 MB of them


class Manifold(NamedTuple):
    precision: float  # of the generated images, the share within the real manifold
    recall: float  # of the real images, the share within the generated manifold
    density: (
        float  # real balls that a generated image is in, over k; 1 is expected of equal distributions, no upper end
    )
    coverage: float  # of the real balls, the share with a generated image in it


def compare_manifolds(real: np.ndarray, generated: np.ndarray, k: int = 3, k_coverage: int = 5) -> Manifold:
    """real (N, D), generated (M, D); k: of precision and recall, k_coverage: of density and coverage.

    Distances are in float64, between features less the real ones' mean; those within rounding of 0 are 0, so that a copy
    lies at its original. Each is computed once, block by block: N M D + (N^2 + M^2) D / 2 multiplications.
    """
    most = max(k, k_coverage)
    if (n := min(len(real), len(generated))) <= most:
        raise UserError(
            f"a manifold of {most} neighbours needs at least {most + 1} images in each set; the smaller has {n}"
        )
    with tqdm(
        total=len(real) + len(generated) + len(real),
        desc="comparing manifolds",
        unit=" image",
        leave=False,
        dynamic_ncols=True,
        disable=max(len(real), len(generated)) <= SHOWN,
    ) as bar:
        return _compare(real, generated, k, k_coverage, bar)


def _compare(real: np.ndarray, generated: np.ndarray, k: int, k_coverage: int, bar: tqdm) -> Manifold:
    centre = np.asarray(real).mean(axis=0, dtype=np.float64)
    real_radii = _nearest(real, centre, max(k, k_coverage), bar)
    generated_radii = _nearest(generated, centre, k, bar)[:, k - 1]
    real_radii, coverage_radii = real_radii[:, k - 1], real_radii[:, k_coverage - 1]

    precise = torch.zeros(len(generated), dtype=torch.bool)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    within = 0
    for rows, x in _blocks(real, centre):
        for columns, y in _blocks(generated, centre):
            d = _squared_distances(x, y)
            precise[columns] |= (d <= real_radii[rows, None]).any(dim=0)
            recalled[rows] |= (d <= generated_radii[None, columns]).any(dim=1)
            balls = d <= coverage_radii[rows, None]
            within += int(balls.count_nonzero())
            covered[rows] |= balls.any(dim=1)
        bar.update(len(x))
    density = within / (k_coverage * len(generated))
    return Manifold(_share(precise), _share(recalled), density, _share(covered))


def _nearest(features: np.ndarray, centre: np.ndarray, k: int, bar: tqdm) -> torch.Tensor:
    """Of each image, the squared distances to its k nearest others, ascending: float64 (N, k)."""
    nearest = torch.full((len(features), k), torch.inf, dtype=torch.float64)
    for rows, x in _blocks(features, centre):
        for columns, y in _blocks(features, centre, rows.start):
            d = _squared_distances(x, y)
            if rows == columns:
                d.fill_diagonal_(torch.inf)
            else:
                nearest[columns] = _smallest(torch.cat([nearest[columns], _smallest(d.T, k)], dim=1), k)
            nearest[rows] = _smallest(torch.cat([nearest[rows], _smallest(d, k)], dim=1), k)
        bar.update(len(x))
    return nearest


def _smallest(d: torch.Tensor, k: int) -> torch.Tensor:
    return d.topk(min(k, d.shape[1]), dim=1, largest=False).values


def _blocks(features: np.ndarray, centre: np.ndarray, start: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows from `start` on, and their features less the centre in float64."""
    for first in range(start, len(features), BLOCK):
        rows = slice(first, min(first + BLOCK, len(features)))
        yield rows, features[rows] - centre


def _squared_distances(x: np.ndarray, y: np.ndarray) -> torch.Tensor:
    """Float64 (N, M) between rows: |x|^2 + |y|^2 - 2 x.y, and 0 where rounding may have left no digit of it."""
    d = x @ y.T
    d *= -2
    norms = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    d += norms
    norms *= 1e-13
    d[d < norms] = 0
    return torch.from_numpy(d)


def _share(mask: torch.Tensor) -> float:
    return mask.double().mean().item()
