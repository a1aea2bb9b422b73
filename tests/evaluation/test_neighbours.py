import numpy as np

from ddpm_hf.evaluation.image_files import FolderImages
from ddpm_hf.evaluation.neighbours import Nearest, find_nearest, nearest
from tests.evaluation.conftest import random_images, write_images


def test_the_nearest_in_order_with_their_distances():
    others = np.array([[0.0, 0], [3, 4], [1, 0], [6, 8]], np.float32)
    indices, distances = nearest(np.array([[0.0, 0], [6, 8]], np.float32), others, 3)
    np.testing.assert_array_equal(indices, [[0, 2, 1], [3, 1, 2]])
    np.testing.assert_allclose(distances, [[0, 1, 5], [0, 5, np.hypot(5, 8)]])


def test_of_more_than_are_compared_at_once_and_far_from_zero():
    """A copy's distance is exactly 0, where |a|^2 + |b|^2 - 2ab would leave rounding."""
    others = (np.random.default_rng(0).normal(size=(10_000, 6)) + 1e4).astype(np.float32)
    chosen = [9_999, 4_096, 4_095, 0]
    indices, distances = nearest(others[chosen], others, 2)
    np.testing.assert_array_equal(indices[:, 0], chosen)
    np.testing.assert_array_equal(distances[:, 0], 0)
    every = np.linalg.norm(others[None, chosen].astype(np.float64)[0, 1] - others.astype(np.float64), axis=1)
    assert indices[1, 1] == np.argsort(every)[1] and distances[1, 1] == np.sort(every)[1]


def test_samples_are_shown_beside_the_images_that_are_nearest(tmp_path):
    pixels = random_images(9)
    reference = FolderImages(write_images(tmp_path, pixels), "x", progress=False)
    features = np.arange(9, dtype=np.float32)[:, None] ** 2
    found = find_nearest(pixels[[4, 7], None], features[[4, 7]] + 0.5, reference, features, k=2)
    np.testing.assert_array_equal(found.indices, [[4, 3], [7, 6]])
    np.testing.assert_array_equal(found.images[:, :, 0], pixels[[[4, 3], [7, 6]]])


def test_the_picture_holds_every_sample_and_its_neighbours():
    samples = np.full((3, 3, 80, 80), 10, np.uint8)
    images = np.full((3, 5, 3, 80, 80), 200, np.uint8)
    picture = np.asarray(Nearest(samples, images, None, np.arange(15.0).reshape(3, 5)).picture())
    assert (picture == 10).all(axis=-1).sum() >= 3 * 80 * 80
    assert (picture == 200).all(axis=-1).sum() >= 15 * 80 * 80
