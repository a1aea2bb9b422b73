"""From the names of metrics to their values, for one set of images or against another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.frechet import frechet_distance
from ddpm_hf.evaluation.kernel import kernel_distance
from ddpm_hf.evaluation.manifold import compare_manifolds
from ddpm_hf.evaluation.score import inception_score
from ddpm_hf.evaluation.statistics import UNKNOWN_COUNT, Statistics

SPLITS = 10  # of the score
ENOUGH_FOR_FRECHET = 10_000  # images in the smaller set, as the FID's authors recommend (bioinf-jku/TTUR)


@dataclass(frozen=True)
class Needs:
    images: int  # at least, in each set
    reference: bool = False
    features: bool = False  # of both sets, kept whole
    probabilities: bool = False  # of the generated images


METRICS = {
    "frechet": Needs(2, reference=True),
    "kernel": Needs(4, reference=True, features=True),
    "score": Needs(SPLITS, probabilities=True),
    "precision_recall": Needs(6, reference=True, features=True),
    "density_coverage": Needs(6, reference=True, features=True),
    "class_agreement": Needs(1),  # what it needs of a classifier is another network's
}

_NAMES = {"frechet": "frechet_distance", "kernel": "kernel_distance", "score": "score"}
_INCEPTION = {"frechet": "fid", "kernel": "kid", "score": "inception_score"}

# key, or its start before an extractor's name → name in tables, and whether a higher value is the better one
_LABELS: dict[str, tuple[str, bool]] = {
    "fid": ("FID", False),
    "kid": ("KID", False),
    "inception_score": ("Inception Score", True),
    "frechet_distance": ("Fréchet distance", False),
    "kernel_distance": ("kernel distance", False),
    "score": ("score", True),
    "precision": ("precision", True),
    "recall": ("recall", True),
    "density": ("density", True),
    "coverage": ("coverage", True),
    "class_agreement": ("class agreement", True),
    "bits_per_dimension": ("bits per dimension", False),
    "validation_loss": ("validation loss", False),
    "validation_loss_unlabelled": ("validation loss without labels", False),
}
_SPREADS = {"_standard_error": "standard error", "_deviation": "deviation of splits"}


def key(metric: str, extractor: str) -> str:
    """Of a distance's or the score's value in records. Only Inception's are called FID, KID and Inception Score."""
    return _INCEPTION[metric] if extractor == "inception" else f"{_NAMES[metric]}_{extractor}"


def label(key: str) -> str:
    """A key's name in tables: "FID ↓", "Fréchet distance (dinov2) ↓", "KID, standard error"."""
    for end, meaning in _SPREADS.items():
        if key.endswith(end):
            return f"{label(key.removesuffix(end))[:-2]}, {meaning}"
    start = _start(key)
    name, higher = _LABELS[start]
    extractor = key.removeprefix(start).removeprefix("_")
    return f"{name}{f' ({extractor})' if extractor else ''} {'↑' if higher else '↓'}"


def higher_is_better(key: str) -> bool:
    return _LABELS[_start(key)][1]


def _start(key: str) -> str:
    return next((start for start in _NAMES.values() if key.startswith(f"{start}_")), key)


def check(
    metrics: Sequence[str],
    num_images: int,
    reference_images: int | None,
    extractor: str,
    has_probabilities: bool,
) -> None:
    """Raises `UserError` for metrics that cannot be measured. Needs no image, so that mistakes come first.

    num_images: to be generated; reference_images: None without a reference.
    """
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"{name!r} is no metric; choose from {', '.join(METRICS)}")
        needs = METRICS[name]
        if needs.reference and reference_images is None:
            raise UserError(f"{name} needs a reference to compare with, and there is none")
        if needs.probabilities and not has_probabilities:
            raise UserError(f"{name} needs an extractor with class probabilities, and {extractor} has none")
        if num_images < needs.images:
            raise UserError(f"{name} needs at least {needs.images} images, and there are {num_images}")
        if needs.reference and reference_images < needs.images:
            raise UserError(
                f"{name} needs at least {needs.images} images in the reference, which has {reference_images}"
            )


def measure(
    metrics: Sequence[str],
    generated: Statistics,
    reference: Statistics | None,
    extractor: str,
) -> tuple[dict[str, float], list[str]]:
    """The metrics' values by their keys in records, and warnings of one line each.

    metrics: names of `METRICS`; both Statistics hold what these need, and come from `extractor`. class_agreement, which
        needs neither, is left to the function of this name
    Raises `UserError` as `check` does, and for features of unlike dimensions or not finite.
    """
    count = generated.moments.count
    reference_count = None if reference is None else reference.moments.count
    check(metrics, count, reference_count, extractor, generated.probabilities is not None)
    _check_finite(generated, "images", extractor)
    if reference is not None:
        _check_finite(reference, "reference", extractor)
        _check_dimensions(generated, reference)
        _check_features(metrics, generated, reference)

    values, warnings = {}, []
    if "frechet" in metrics:
        values[key("frechet", extractor)] = _frechet(generated, reference)
        warnings += _frechet_warnings(generated, reference)
    if "kernel" in metrics:
        name = key("kernel", extractor)
        values[name], values[f"{name}_standard_error"] = kernel_distance(reference.features, generated.features)
    if "score" in metrics:
        name = key("score", extractor)
        values[name], values[f"{name}_deviation"] = inception_score(generated.probabilities, SPLITS)
        warnings += _score_warnings(*generated.probabilities.shape)
    if {"precision_recall", "density_coverage"} & set(metrics):
        manifold = compare_manifolds(reference.features, generated.features)
        if "precision_recall" in metrics:
            values |= {"precision": manifold.precision, "recall": manifold.recall}
        if "density_coverage" in metrics:
            values |= {"density": manifold.density, "coverage": manifold.coverage}
        warnings += _manifold_warnings(set(metrics), count, reference_count)
    return values, warnings


def class_agreement(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose likeliest class is the one that was asked for: probabilities (N, K), labels (N,) < K."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def _frechet(generated: Statistics, reference: Statistics) -> float:
    gaussians = [(m.mean.cpu().numpy(), m.covariance.cpu().numpy()) for m in (reference.moments, generated.moments)]
    return frechet_distance(*gaussians[0], *gaussians[1])


def _frechet_warnings(generated: Statistics, reference: Statistics) -> list[str]:
    count, reference_count = generated.moments.count, reference.moments.count
    smaller, dimensions = min(count, reference_count), len(generated.moments.mean)
    if smaller >= ENOUGH_FOR_FRECHET and smaller > dimensions:
        return []
    singular = f", a covariance of {dimensions:,} dimensions is singular" if smaller <= dimensions else ""
    others = "published statistics" if reference_count == UNKNOWN_COUNT else f"{reference_count:,} of the reference"
    return [
        f"{count:,} images against {others}{singular}: the Fréchet distance is biased upwards"
        " by so few; compare it with distances of the same counts only"
    ]


def _manifold_warnings(metrics: set[str], count: int, reference_count: int) -> list[str]:
    if min(count, reference_count) >= ENOUGH_FOR_FRECHET:
        return []
    shares = {"precision_recall": "precision and recall", "density_coverage": "density and coverage"}
    named = " and ".join(words for name, words in shares.items() if name in metrics)
    return [
        f"{count:,} images against {reference_count:,} of the reference: {named} follow both counts; compare them"
        " with values of the same counts only"
    ]


def _score_warnings(count: int, classes: int) -> list[str]:
    if count // SPLITS >= classes:
        return []
    return [
        f"{count // SPLITS:,} images in each of {SPLITS} splits, for {classes:,} classes: no score can be above"
        f" {count // SPLITS:,}; compare it with scores of as many images only"
    ]


def _check_finite(statistics: Statistics, what: str, extractor: str) -> None:
    for name, values in (
        ("features", statistics.moments.mean.cpu().numpy()),
        ("probabilities", statistics.probabilities),
    ):
        if values is not None and not np.isfinite(values).all():
            raise UserError(
                f"{extractor}'s {name} of the {what} are not finite; its weights must be whole and in float32"
            )


def _check_dimensions(generated: Statistics, reference: Statistics) -> None:
    mine, theirs = len(generated.moments.mean), len(reference.moments.mean)
    if mine != theirs:
        raise UserError(
            f"the images' features have {mine} dimensions, the reference's {theirs}: they come from different extractors"
        )


def _check_features(metrics: Sequence[str], generated: Statistics, reference: Statistics) -> None:
    for what, statistics in (("images", generated), ("reference", reference)):
        if statistics.features is None and (lacking := [name for name in metrics if METRICS[name].features]):
            raise UserError(f"{lacking[0]} needs every feature of the {what}; its mean and covariance are not enough")
