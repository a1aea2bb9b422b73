import numpy as np
import pytest
import torch

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.frechet import frechet_distance
from ddpm_hf.evaluation.kernel import kernel_distance
from ddpm_hf.evaluation.manifold import compare_manifolds
from ddpm_hf.evaluation.metrics import METRICS, check, class_agreement, higher_is_better, label, measure
from ddpm_hf.evaluation.score import inception_score
from ddpm_hf.evaluation.statistics import Moments, Statistics


def statistics(seed, n=60, size=8, shift=0.0, classes=4):
    random = np.random.default_rng(seed)
    features = (random.normal(size=(n, size)) + shift).astype(np.float32)
    moments = Moments(size)
    moments.add(torch.from_numpy(features))
    probabilities = random.dirichlet(np.full(classes, 0.3), n).astype(np.float32)
    return Statistics(moments, features, probabilities, np.arange(n) % classes)


def test_every_metric_has_its_key_and_its_value():
    generated, reference = statistics(0), statistics(1, shift=0.5)
    values, _ = measure(list(METRICS), generated, reference, "inception")
    fits = [(s.features.mean(0, dtype=np.float64), np.cov(s.features, rowvar=False)) for s in (reference, generated)]
    manifold = compare_manifolds(reference.features, generated.features)
    kid, kid_error = kernel_distance(reference.features, generated.features)
    score, deviation = inception_score(generated.probabilities)
    expected = {
        "fid": frechet_distance(*fits[0], *fits[1]),
        "kid": kid,
        "kid_standard_error": kid_error,
        "inception_score": score,
        "inception_score_deviation": deviation,
        **manifold._asdict(),
    }
    assert values == pytest.approx(expected) and list(values) == list(expected)
    assert all(type(value) is float for value in values.values())


def test_only_inception_s_are_called_fid_kid_and_inception_score():
    values, _ = measure(["frechet", "kernel", "score"], statistics(0), statistics(1), "efficientnet_lite0")
    assert list(values) == [
        "frechet_distance_efficientnet_lite0",
        "kernel_distance_efficientnet_lite0",
        "kernel_distance_efficientnet_lite0_standard_error",
        "score_efficientnet_lite0",
        "score_efficientnet_lite0_deviation",
    ]


def test_only_what_is_asked_for_is_measured():
    generated, reference = statistics(0), statistics(1)
    for statistic in (generated, reference):
        statistic.features = statistic.probabilities = statistic.labels = None
    assert list(measure(["frechet"], generated, reference, "dinov2")[0]) == ["frechet_distance_dinov2"]
    assert list(measure(["density_coverage"], statistics(0), statistics(1), "x")[0]) == ["density", "coverage"]
    assert list(measure(["score"], statistics(0), None, "x")[0]) == ["score_x", "score_x_deviation"]


@pytest.mark.parametrize(
    "key, name, higher",
    [
        ("fid", "FID ↓", False),
        ("kid", "KID ↓", False),
        ("inception_score", "Inception Score ↑", True),
        ("frechet_distance_efficientnet_lite0", "Fréchet distance (efficientnet_lite0) ↓", False),
        ("kernel_distance_dinov2", "kernel distance (dinov2) ↓", False),
        ("score_classifier", "score (classifier) ↑", True),
        ("recall", "recall ↑", True),
        ("class_agreement", "class agreement ↑", True),
        ("bits_per_dimension", "bits per dimension ↓", False),
    ],
)
def test_names_in_tables(key, name, higher):
    assert label(key) == name and higher_is_better(key) == higher


def test_names_of_spreads():
    assert label("kid_standard_error") == "KID, standard error"
    assert label("score_classifier_deviation") == "score (classifier), deviation of splits"


@pytest.mark.parametrize("counts, singular", [((8, 60), True), ((60, 8), True), ((9, 60), False)])
def test_few_images_give_a_finite_distance_and_a_warning(counts, singular):
    values, (warning,) = measure(["frechet"], statistics(0, counts[0]), statistics(1, counts[1]), "inception")
    assert np.isfinite(values["fid"])
    assert (
        warning.startswith(f"{counts[0]} images against {counts[1]} of the reference") and "biased upwards" in warning
    )
    assert ("a covariance of 8 dimensions is singular" in warning) == singular


def test_enough_images_are_not_warned_of():
    assert measure(["frechet"], statistics(0, 10_000), statistics(1, 10_000), "inception")[1] == []
    assert measure(["kernel"], statistics(0), statistics(1), "inception")[1] == []
    (warning,) = measure(["precision_recall"], statistics(0), statistics(1), "inception")[1]
    assert warning.startswith("60 images against 60 of the reference: precision and recall follow both counts")


def test_a_score_of_few_images_is_warned_of():
    _, (warning,) = measure(["score"], statistics(0, 60, classes=10), None, "inception")
    assert "6 images in each of 10 splits, for 10 classes: no score can be above 6" in warning
    assert measure(["score"], statistics(0, 100, classes=10), None, "inception")[1] == []


def test_a_set_against_itself_is_zero():
    values, _ = measure(["frechet"], statistics(0, 20, 64), statistics(0, 20, 64), "inception")
    assert values["fid"] < 1e-6


def test_agreement_counts_images_of_the_class_asked_for():
    probabilities = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 0, 0]]  # the last two are asked to be 2, 3
    assert class_agreement(probabilities, np.arange(8) % 4) == 6 / 8


def without(part):
    generated = statistics(0)
    setattr(generated, part, None)
    return generated


def with_(value):
    generated = statistics(0)
    generated.moments.add(torch.full((1, 8), value))
    return generated


@pytest.mark.parametrize(
    "metric, generated, reference, message",
    [
        ("fid", statistics(0), statistics(1), "'fid' is no metric; choose from frechet, kernel, score"),
        ("frechet", statistics(0), None, "frechet needs a reference"),
        ("frechet", statistics(0, size=9), statistics(1), "9 dimensions, the reference's 8"),
        ("frechet", with_(torch.nan), statistics(1), "features of the images are not finite"),
        ("frechet", statistics(0), with_(torch.inf), "features of the reference are not finite"),
        ("score", without("probabilities"), None, "class probabilities, and dinov2 has none"),
        ("frechet", statistics(0, 1), statistics(1), "at least 2 images, and there are 1"),
        ("kernel", statistics(0, 3), statistics(1), "at least 4 images, and there are 3"),
        ("kernel", statistics(0), without("features"), "kernel needs every feature of the reference"),
        ("score", statistics(0, 9), None, "at least 10 images, and there are 9"),
        ("precision_recall", statistics(0), statistics(1, 5), "at least 6 images in the reference, which has 5"),
        ("density_coverage", statistics(0, 5), statistics(1), "at least 6 images, and there are 5"),
    ],
)
def test_a_mistake_is_told_in_one_line(metric, generated, reference, message):
    with pytest.raises(UserError, match=message) as error:
        measure([metric], generated, reference, "dinov2")
    assert "\n" not in str(error.value)


def test_the_least_counts_can_be_measured():
    for name, needs in METRICS.items():
        if name == "class_agreement":
            continue
        least = statistics(0, needs.images)
        assert measure([name], least, statistics(1, needs.images), "x")[0]


def test_mistakes_come_before_any_image():
    with pytest.raises(UserError, match="kernel needs at least 4 images, and there are 2"):
        check(["frechet", "kernel"], 2, 1000, "inception", True)
    check(["frechet", "score"], 1000, 1000, "inception", True)
