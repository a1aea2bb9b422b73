import numpy as np
import pytest
from scipy.linalg import sqrtm

from ddpm_hf.evaluation.frechet import frechet_distance


def gaussian(seed, size=12, samples=500):
    x = np.random.default_rng(seed).normal(size=(samples, size)) @ np.random.default_rng(seed + 1).normal(
        size=(size, size)
    )
    return x.mean(0) + seed, np.cov(x, rowvar=False)


def test_equals_the_general_matrix_root_where_that_works():
    (m1, s1), (m2, s2) = gaussian(0), gaussian(5)
    expected = np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-9)


def test_closed_forms():
    zero, one = np.zeros(3), np.ones(3)
    assert frechet_distance(zero, np.eye(3), one, np.eye(3)) == pytest.approx(3)
    # for covariances that commute: sum of (sqrt(a) - sqrt(b))^2
    assert frechet_distance(zero, np.diag([1.0, 4, 9]), zero, np.diag([4.0, 4, 1])) == pytest.approx(1 + 0 + 4)


def test_two_by_two_closed_form():
    s1, s2 = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.25], [-0.25, 3.0]])
    # for 2x2, trace(root(A)) = sqrt(trace(A) + 2 sqrt(det(A))) with A = s1 s2
    a = s1 @ s2
    expected = np.trace(s1) + np.trace(s2) - 2 * np.sqrt(np.trace(a) + 2 * np.sqrt(np.linalg.det(a)))
    assert frechet_distance(np.zeros(2), s1, np.zeros(2), s2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("samples", [3, 8, 500])
def test_a_set_against_itself_is_zero_even_with_fewer_samples_than_features(samples):
    mean, covariance = gaussian(2, size=12, samples=samples)
    assert abs(frechet_distance(mean, covariance, mean, covariance)) < 1e-6 * np.trace(covariance)


def test_values_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(np.full(2, np.nan), np.eye(2), np.zeros(2), np.eye(2))
