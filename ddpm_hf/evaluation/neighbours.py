"""The reference images nearest to samples, in feature space: who looks at them sees what a model has learned by heart."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ddpm_hf.evaluation.images import Images
from ddpm_hf.evaluation.pages import neighbours_page

NEAREST = 5
_ROWS = 4096  # of the reference compared at once


@dataclass(frozen=True)
class Nearest:
    """samples: uint8 (n, C, H, W); images: uint8 (n, k, C, H, W), the nearest first
    indices: int64 (n, k), where these stand in the reference; distances: float64 (n, k), Euclidean
    """

    samples: np.ndarray
    images: np.ndarray
    indices: np.ndarray
    distances: np.ndarray

    def picture(self) -> Image.Image:
        heads = ("sample", "nearest reference images")
        return neighbours_page(self.samples, self.images, self.distances, heads=heads)


def find_nearest(
    samples: np.ndarray, features: np.ndarray, reference: Images, reference_features: np.ndarray, k: int = NEAREST
) -> Nearest:
    """samples: uint8 (n, C, H, W); features: (n or more, D), theirs first; reference_features: (N, D)."""
    indices, distances = nearest(features[: len(samples)], reference_features, k)
    images = reference.read(indices.ravel().tolist()).numpy()
    return Nearest(samples, images.reshape(*indices.shape, *images.shape[1:]), indices, distances)


def nearest(points: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `points` (n, D) the k nearest of `others` (N, D), the nearest first: indices and distances, (n, k).

    In float64 and from differences, so that a copy's distance is exactly 0.
    """
    k = min(k, len(others))
    points = np.asarray(points, np.float64)
    distances = np.empty((len(points), len(others)))
    for start in range(0, len(others), _ROWS):
        some = np.asarray(others[start : start + _ROWS], np.float64)
        for n, point in enumerate(points):
            distances[n, start : start + _ROWS] = np.linalg.norm(some - point, axis=1)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return indices, np.take_along_axis(distances, indices, axis=1)
