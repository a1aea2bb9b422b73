import numpy as np
import pytest
import scipy
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.frechet import frechet_distance


def gaussian(seed, size=12, samples=500):
    x = np.random.default_rng(seed).normal(size=(samples, size)) @ np.random.default_rng(seed + 1).normal(
        size=(size, size)
    )
    return x.mean(0) + seed, np.cov(x, rowvar=False)


def fit(x):
    return x.mean(0), np.cov(x, rowvar=False)


def halves_of_digits(dimensions, split):
    """Mean and covariance of the halves of a one-layer network's features of real digits: many zeros, as Inception's."""
    pixels, labels = load_digits(return_X_y=True)
    i, j = np.mgrid[1:65, 1 : dimensions + 1]
    features = np.maximum(pixels @ np.sin(i * j) / 8, 0)
    mask = {"even": np.arange(len(labels)) % 2 == 0, "low": labels < 5, "few": np.arange(len(labels)) < 100}[split]
    return fit(features[mask]), fit(features[~mask])


# cleanfid.fid.frechet_distance of clean-fid 0.1.35 with SciPy 1.17.1, on halves_of_digits; in the last, the half of 100
# has a singular covariance
CLEAN_FID = {
    (24, "even"): 0.7654845061604192,
    (24, "low"): 25.388668254467945,
    (24, "few"): 8.66173360124526,
    (160, "even"): 12.51309846658819,
    (160, "low"): 253.78880923514293,
    (160, "few"): 120.03788062603098,
}


@pytest.mark.parametrize("dimensions, split", CLEAN_FID)
def test_equals_what_clean_fid_gave(dimensions, split):
    (m1, s1), (m2, s2) = halves_of_digits(dimensions, split)
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(CLEAN_FID[dimensions, split], rel=1e-6)


@pytest.mark.parametrize("dimensions, split", CLEAN_FID)
@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.skipif(
    tuple(int(n) for n in scipy.__version__.split(".")[:2]) >= (1, 18),
    reason="clean-fid calls sqrtm(disp=), which SciPy 1.18 removes",
)
def test_equals_clean_fid(dimensions, split):
    from cleanfid.fid import frechet_distance as clean_fid

    (m1, s1), (m2, s2) = halves_of_digits(dimensions, split)
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(clean_fid(m1, s1, m2, s2), rel=1e-6)


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


def test_samples_of_gaussians_approach_their_closed_form():
    """Of rotated axes whose deviations are a and b, |shift|^2 + sum of (a - b)^2."""
    a, b, shift = np.linspace(1, 3, 8), np.linspace(2.5, 0.5, 8), np.linspace(-1, 1, 8)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    z1, z2 = np.random.default_rng(1).normal(size=(2, 100_000, 8))
    expected = np.square(shift).sum() + np.square(a - b).sum()
    distance = frechet_distance(*fit(z1 * a @ rotation), *fit((z2 * b + shift) @ rotation))
    assert distance == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("samples", [3, 8, 500])
def test_a_set_against_itself_is_zero_even_with_fewer_samples_than_features(samples):
    for seed in range(20):
        mean, covariance = gaussian(seed, size=12, samples=samples)
        assert 0 <= frechet_distance(mean, covariance, mean, covariance) < 1e-6


@pytest.mark.parametrize("samples", [300, 3000])
@pytest.mark.parametrize("size", [768, pytest.param(2048, marks=pytest.mark.slow)])
def test_a_set_against_itself_in_another_order_is_zero_at_real_extractors_sizes(samples, size):
    random = np.random.default_rng(0)
    features = np.maximum(random.normal(size=(samples, size)) * np.geomspace(10, 1e-3, size) + 1, 0)
    assert frechet_distance(*fit(features), *fit(random.permutation(features))) < 1e-6


@pytest.mark.parametrize("counts", [(40, 40), (40, 500), (119, 121)])
def test_singular_covariances_have_the_distance_of_their_factors(counts):
    """With S = X^T X / (n - 1), the trace of the root is the nuclear norm of X1 X2^T: no root, no eigenvalue."""
    spread = np.geomspace(1, 1e-4, 120)
    x1, x2 = (np.random.default_rng(n).normal(size=(n, 120)) * spread * (1 + n / 1000) for n in counts)
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (x1, x2)]
    trace_of_root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    squares = sum(np.square(x).sum() for x in (*centred, x1.mean(0) - x2.mean(0)))
    assert frechet_distance(*fit(x1), *fit(x2)) == pytest.approx(squares - 2 * trace_of_root, rel=1e-10)


def test_a_set_without_spread_has_a_distance():
    """A collapsed model draws one image: the covariance is zero."""
    distance = frechet_distance(np.ones(4), np.zeros((4, 4)), np.zeros(4), np.diag([1.0, 2, 3, 4]))
    assert distance == pytest.approx(4 + 10)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(value):
    with pytest.raises(UserError, match="not finite"):
        frechet_distance(np.full(2, value), np.eye(2), np.zeros(2), np.eye(2))
    with pytest.raises(UserError, match="not finite"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.full((2, 2), value))
