import numpy as np
import pytest

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation import manifold
from ddpm_hf.evaluation.manifold import compare_manifolds


def gaussian(seed, n, size=5, scale=1.0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(n, size)) * scale + shift).astype(np.float32)


def naive(real, generated, k, k_coverage):
    """Kynkäänniemi et al. 2019, equations 1 and 2; Naeem et al. 2020, equations 3 and 6; pair by pair."""

    def distance(a, b):
        return float(np.sqrt(np.square(a.astype(np.float64) - b.astype(np.float64)).sum()))

    def radius(i, features, k):
        return sorted(distance(features[i], other) for j, other in enumerate(features) if j != i)[k - 1]

    def within(x, i, features, k):
        return distance(x, features[i]) <= radius(i, features, k)

    N, M = len(real), len(generated)
    precision = sum(any(within(y, i, real, k) for i in range(N)) for y in generated) / M
    recall = sum(any(within(x, j, generated, k) for j in range(M)) for x in real) / N
    density = sum(within(y, i, real, k_coverage) for y in generated for i in range(N)) / (k_coverage * M)
    coverage = sum(any(within(y, i, real, k_coverage) for y in generated) for i in range(N)) / N
    return precision, recall, density, coverage


@pytest.mark.parametrize("block", [7, 2048])
@pytest.mark.parametrize("counts", [(20, 20), (19, 26)])
def test_equals_a_count_pair_by_pair(monkeypatch, block, counts):
    monkeypatch.setattr(manifold, "BLOCK", block)
    real, generated = gaussian(0, counts[0]), gaussian(1, counts[1], scale=0.8, shift=0.7)
    found = compare_manifolds(real, generated, k=3, k_coverage=5)
    assert found == pytest.approx(naive(real, generated, 3, 5), abs=1e-12)
    assert 0 < found.precision < 1 and 0 < found.recall < 1 and 0 < found.coverage < 1  # tells something


@pytest.mark.parametrize("k, k_coverage", [(1, 1), (5, 2)])
def test_other_neighbours(k, k_coverage):
    real, generated = gaussian(0, 20), gaussian(1, 20, shift=0.7)
    assert compare_manifolds(real, generated, k, k_coverage) == pytest.approx(naive(real, generated, k, k_coverage))


def test_a_set_against_itself_is_whole():
    real = gaussian(0, 50)
    found = compare_manifolds(real, real[::-1])
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx((5 + 1) / 5)  # each ball holds its k neighbours and its own centre


@pytest.mark.parametrize("block", [7, 2048])
def test_copies_lie_at_their_originals(monkeypatch, block):
    """Balls of radius 0, far from zero, in whatever order: rounding must not push a copy out."""
    monkeypatch.setattr(manifold, "BLOCK", block)
    real = np.repeat(gaussian(0, 37, size=301, shift=1000), 6, axis=0)
    generated = np.random.default_rng(1).permutation(real)
    assert compare_manifolds(real, generated)[:2] == (1, 1)
    other = generated.copy()
    other[:, 0] += 1e-3  # 16 roundings of float32, and outside
    assert compare_manifolds(real, other)[:2] == (0, 0)


def test_sets_apart_share_nothing():
    assert compare_manifolds(gaussian(0, 50), gaussian(1, 50, shift=100)) == (0, 0, 0, 0)


def test_a_narrower_set_is_precise_and_recalls_less():
    real = gaussian(0, 400)
    same, narrow, wide = (compare_manifolds(real, gaussian(1, 400, scale=s)) for s in (1, 0.5, 2))
    assert narrow.precision > same.precision > wide.precision
    assert narrow.recall < same.recall < wide.recall
    assert narrow.density > same.density > wide.density
    assert same.coverage > max(narrow.coverage, wide.coverage)
    assert same.density == pytest.approx(1, abs=0.1)


def test_a_set_no_larger_than_the_neighbourhood_is_refused():
    with pytest.raises(UserError, match="5 neighbours needs at least 6 images in each set; the smaller has 5"):
        compare_manifolds(gaussian(0, 50), gaussian(1, 5))
    assert compare_manifolds(gaussian(0, 6), gaussian(0, 6)).precision == 1


@pytest.mark.parametrize(("most", "shown"), [(29, True), (30, False)])
def test_many_images_have_a_bar_that_ends_full(most, shown, monkeypatch, capsys):
    monkeypatch.setattr(manifold, "SHOWN", most)
    bars = []
    bar = manifold.tqdm
    monkeypatch.setattr(manifold, "tqdm", lambda **options: bars.append(bar(**options)) or bars[0])
    compare_manifolds(gaussian(0, 20), gaussian(1, 30))
    assert ("comparing manifolds" in capsys.readouterr().err) == shown
    if shown:
        assert bars[0].n == bars[0].total == 70
