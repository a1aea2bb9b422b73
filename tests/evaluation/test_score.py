import numpy as np
import pytest

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.score import inception_score


def random_probabilities(n, classes, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), n).astype(np.float32)


def naive(probabilities, splits):
    """Salimans et al. 2016, number by number."""
    n, scores = len(probabilities), []
    for s in range(splits):
        part = [[float(p) for p in row] for row in probabilities[s * n // splits : (s + 1) * n // splits]]
        marginal = [sum(column) / len(part) for column in zip(*part, strict=True)]
        terms = [p * np.log(p / q) for row in part for p, q in zip(row, marginal, strict=True) if p > 0]
        scores.append(np.exp(sum(terms) / len(part)))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("count, splits", [(40, 1), (40, 10), (43, 10)])
def test_equals_a_sum_number_by_number(count, splits):
    p = random_probabilities(count, 6)
    assert inception_score(p, splits) == pytest.approx(naive(p, splits), rel=1e-12)


def test_images_that_tell_nothing_score_one():
    assert inception_score(np.full((50, 8), 1 / 8)) == pytest.approx((1, 0))


def test_sure_and_balanced_classes_score_their_number():
    classes = np.arange(500) % 10
    assert inception_score(np.eye(10)[classes]) == pytest.approx((10, 0))
    assert inception_score(np.eye(10)[classes % 5]) == pytest.approx((5, 0))


def test_a_class_alone_scores_one():
    assert inception_score(np.eye(10)[np.zeros(50, int)]) == pytest.approx((1, 0))


def test_unbalanced_classes_score_their_entropy_s_exponential():
    share = np.array([0.5, 0.25, 0.25])
    score, _ = inception_score(np.eye(3)[[0, 0, 1, 2] * 10], splits=10)
    assert score == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_splits_are_of_successive_images():
    p = np.eye(2)[[0] * 10 + [1] * 10]  # one class, then the other
    assert inception_score(p, splits=2) == pytest.approx((1, 0))
    assert inception_score(p, splits=1) == pytest.approx((2, 0))


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(UserError, match="10 splits needs at least as many images; there are 9"):
        inception_score(random_probabilities(9, 3))
