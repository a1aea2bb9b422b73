"""A set of images, measured: all of it together, for the command and for training alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import PartialState

from ddpm_hf.config import Data
from ddpm_hf.data.store import PreparedStore
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation import metrics as names
from ddpm_hf.evaluation.extraction import Extraction, extract, from_main
from ddpm_hf.evaluation.extractors import build_extractor
from ddpm_hf.evaluation.extractors.base import Extractor
from ddpm_hf.evaluation.images import Chosen, DrawnImages, Images, StoreImages
from ddpm_hf.evaluation.manifold import MOST_IMAGES
from ddpm_hf.evaluation.neighbours import Nearest, find_nearest
from ddpm_hf.evaluation.reference import (
    PublishedStatistics,
    Reference,
    open_reference,
    reference_statistics,
    training_images,
)
from ddpm_hf.evaluation.statistics import UNKNOWN_COUNT, Statistics

Values = dict[str, float]

SHOWN = 16  # samples whose nearest reference images are looked for


@dataclass
class Evaluation:
    """What came out; the same on all processes.

    values: by their keys in records; warnings: a line each
    times: in seconds, by phase, of the slowest process
    distinct: how many of the images differ from one another; None where none had to be looked at
    frechet: the Fréchet distance, whatever its key; None where it was not asked for
    nearest: the reference images nearest to the first samples, on the main process where they were asked for
    """

    values: Values
    warnings: list[str]
    times: dict[str, float]
    distinct: int | None = None
    frechet: float | None = None
    reference_was_cached: bool | None = None
    nearest: Nearest | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Evaluator:
    """What is measured, with what and against what; made once by `build_evaluator`, then called with images.

    metrics: names of `METRICS`
    extractor, classifier: None where no metric needs them; reference: likewise
    option: how options begin in messages, "--" or "evaluate."
    """

    metrics: tuple[str, ...]
    state: PartialState
    extractor: Extractor | None = None
    classifier: Extractor | None = None
    reference: Reference | None = None
    option: str = "--"

    @property
    def _whole(self) -> bool:
        """Whether a metric needs every feature."""
        return any(names.METRICS[metric].features for metric in self.metrics)

    def prepare_reference(self) -> None:
        """Computes the reference's statistics, unless they are kept already. All processes take part."""
        if isinstance(self.reference, Images):
            reference_statistics(self.reference, self.extractor, self.state, self._whole)

    def __call__(
        self, images: Images, others: Mapping[str, Callable[[], Values]] | None = None, nearest: bool = False
    ) -> Evaluation:
        """All processes take part, and get the same.

        others: what is measured otherwise than from images, by name; each gives its values on all processes
        nearest: look for the reference images nearest to the first samples
        """
        started, times, values, warnings = time.perf_counter(), {}, {}, []
        evaluation = Evaluation(values, warnings, times)
        if self.extractor is not None:
            self._measure(images, evaluation, nearest)
        for name, measure in (others or {}).items():
            begun = time.perf_counter()
            values |= measure()
            times[f"{name}_seconds"] = time.perf_counter() - begun
        times["total_seconds"] = time.perf_counter() - started
        return evaluation

    def _measure(self, images: Images, evaluation: Evaluation, nearest: bool) -> None:
        state, times = self.state, evaluation.times
        features = nearest or self._whole
        reference = None
        if self.reference is not None:
            begun = time.perf_counter()
            reference, cached = reference_statistics(self.reference, self.extractor, state, features)
            evaluation.reference_was_cached = cached
            times["reference_seconds"] = time.perf_counter() - begun
        found = extract(
            images,
            self.extractor,
            state,
            features=features,
            probabilities="score" in self.metrics,
            classifier=self.classifier,
            first=SHOWN if nearest else 0,
            title=_title(images, state),
            batch_size_key=f"{self.option}batch_size",
        )
        begun = time.perf_counter()
        outcome = None if found is None else self._outcome(images, found, reference, nearest)
        values, warnings, distinct, reading, extraction = from_main(outcome and outcome[0], state)
        evaluation.nearest = outcome and outcome[1]
        evaluation.distinct = distinct
        evaluation.values.update(values)
        evaluation.warnings.extend(warnings)
        if "frechet" in self.metrics:
            evaluation.frechet = values[names.key("frechet", self.extractor.name)]
        if isinstance(images, DrawnImages):
            times["sampling_seconds"], times["images_per_second"] = reading, len(images) / reading
        else:
            times["reading_seconds"] = reading
        times["extraction_seconds"] = extraction
        times["metrics_seconds"] = time.perf_counter() - begun

    def _outcome(
        self, images: Images, found: Extraction, reference: Statistics | None, nearest: bool
    ) -> tuple[tuple, Nearest | None]:
        """What the main process finds, in arrays that no other has."""
        values, warnings = names.measure(self.metrics, found.statistics, reference, self.extractor.name)
        if "class_agreement" in self.metrics:
            values["class_agreement"] = names.class_agreement(found.seen, images.labels)
        if found.distinct < len(images):
            warnings.append(
                f"only {found.distinct:,} of the {len(images):,} images are distinct: the model, or the folder, repeats itself"
            )
        if isinstance(images, DrawnImages) and images.sampling.class_label is not None and reference is not None:
            warnings.append(
                "all images are of one class, and are compared with all of the reference; what a distance says of them is"
                " mostly that, unless the reference holds this class alone"
            )
        shown = None
        if nearest:
            shown = find_nearest(found.first, found.statistics.features, self.reference, reference.features)
        return (values, warnings, found.distinct, found.reading_seconds, found.extraction_seconds), shown


def build_evaluator(
    metrics: Sequence[str],
    images: Images,
    state: PartialState,
    *,
    data: Data | None = None,
    seed: int = 0,
    reference: str | None = "train",
    reference_images: int | None = None,
    extractor: str = "inception",
    extractor_weights: str | None = None,
    classifier: str | None = None,
    nearest: bool = False,
    option: str = "--",
) -> Evaluator:
    """Finds every mistake that can be found before images are drawn; opens, and where necessary prepares, the reference.

    metrics: names of `METRICS`
    images: those that will be measured, or others of the same kind, number and shape; none is read
    data, seed: of the model's recipe, pixels; None of a model without one
    reference: as `open_reference` takes it
    classifier: for class agreement, an extractor's name; None for `extractor` where it knows as many classes as the
        model, else "classifier", a small one trained on the model's images
    nearest: the nearest reference images will be asked for
    option: how options begin in messages, "--" or "evaluate."
    """
    metrics = tuple(dict.fromkeys(metrics))
    for name in metrics:
        if name not in names.METRICS:
            raise UserError(f"{option}metrics: {name!r} is no metric; choose from {', '.join(names.METRICS)}")
    if not metrics and not nearest:
        return Evaluator((), state, option=option)
    compares = nearest or any(names.METRICS[metric].reference for metric in metrics)
    if compares and reference is None:
        raise UserError(f"{option}reference: {images.called} have no recipe to tell it; name images to compare with")
    opened = None
    with_published = compares and reference.startswith("cleanfid:")
    if with_published:  # nothing to prepare, so its mistakes come first
        opened = open_reference(reference, f"{option}reference", data, seed, reference_images)
        _check_published(opened, metrics, images, extractor, nearest, option)
        _load_published(opened, state, option)
    only_classes = not nearest and set(metrics) == {"class_agreement"}
    # of images without a recipe, the reference's labels are what a small classifier can learn from
    teaches = "class_agreement" in metrics and data is None and not (reference or "cleanfid:").startswith("cleanfid:")
    as_classifier = only_classes and classifier is None and extractor != "inception"  # whose classes no model has

    def build(name: str, weights: str | None = None, role: str = "extractor") -> Extractor:
        try:
            store = _training_set(data, seed, opened, option) if name == "classifier" else None
            built = build_extractor(name, weights, state.device, store, option)
            _try(built, images, option)
        except UserError as error:
            raise type(error)(str(error).replace(f"{option}extractor:", f"{option}{role}:", 1)) from None
        return built

    network, wanted = None, not only_classes or as_classifier
    if wanted and extractor != "classifier":
        network = build(extractor, extractor_weights)
    if (compares or teaches) and opened is None:
        opened = open_reference(reference, f"{option}reference", data, seed, reference_images, state.is_main_process)
        check_shape(opened, images, option)
        _check_size(opened, metrics, option)
    if wanted and network is None:
        network = build(extractor, extractor_weights)

    agreement = None
    if "class_agreement" in metrics:
        num_classes = _num_classes(images, opened, data, seed, option)
        if classifier is not None:
            agreement = build(classifier, role="classifier")
        elif network is not None and classes_of(network, images.shape) == num_classes:
            agreement = network
        else:
            agreement = build("classifier", role="classifier")
        if (theirs := classes_of(agreement, images.shape)) != num_classes:
            raise UserError(
                f"{option}classifier: {agreement.name} knows {theirs or 'no'} classes, the model {num_classes}; name one that"
                " knows the same"
            )
    network = agreement if only_classes else network
    opened = opened if compares else None
    count = None if opened is None else UNKNOWN_COUNT if with_published else len(opened)
    try:
        names.check(metrics, len(images), count, network.name, network.has_probabilities)
    except UserError as error:
        raise UserError(f"{option}metrics: {error}") from None
    if nearest and count < 5:
        raise UserError(f"{option}neighbours: needs a reference of at least 5 images; there are {count}")
    return Evaluator(metrics, state, network, agreement, opened, option)


def classes_of(extractor: Extractor, shape: tuple[int, int, int]) -> int | None:
    """How many classes it sees; None where it knows none."""
    if not extractor.has_probabilities:
        return None
    return extractor(torch.zeros(1, *shape, dtype=torch.uint8)).probabilities.shape[1]


def _check_published(
    reference: PublishedStatistics, metrics: Sequence[str], images: Images, extractor: str, nearest: bool, option: str
) -> None:
    if extractor != "inception":
        raise UserError(f"{option}extractor: {reference.called} are statistics of inception's features; leave it out")
    if whole := [metric for metric in metrics if names.METRICS[metric].features]:
        raise UserError(
            f"{option}metrics: {whole[0]} needs the reference's images, and {reference.called} is a mean and a covariance;"
            " frechet works with these"
        )
    if nearest:
        raise UserError(f"{option}neighbours: {reference.called} has no images; name some as the reference")
    size = "x".join(map(str, images.shape[1:]))
    if images.shape[1:] != (reference.resolution, reference.resolution):
        raise UserError(f"{option}reference: {reference.called} is of another size than {images.called}, {size}")


def _load_published(reference: PublishedStatistics, state: PartialState, option: str) -> None:
    """On the main process alone, which downloads them; all raise its `UserError`."""
    problem = None
    if state.is_main_process:
        try:
            reference.load()
        except UserError as error:
            problem = f"{option}reference: {error}"
    if (problem := from_main(problem, state)) is not None:
        raise UserError(problem)


def _try(extractor: Extractor, images: Images, option: str) -> None:
    """Passes two black images of this shape through it. Raises `UserError` where it cannot take them."""
    try:
        extractor(torch.zeros(2, *images.shape, dtype=torch.uint8))
    except (RuntimeError, ValueError, UserError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        shape = "x".join(map(str, images.shape))
        raise UserError(
            f"{option}extractor: {extractor.name} cannot take {images.called}, {shape} (channels, height, width): {reason}"
        ) from None


def _check_size(reference: Images, metrics: Sequence[str], option: str) -> None:
    asked = [metric for metric in metrics if metric in ("precision_recall", "density_coverage")]
    if asked and len(reference) > MOST_IMAGES:
        raise UserError(
            f"{option}reference_images: {' and '.join(asked)} compare each image of the reference with all others, too many for"
            f" its {len(reference):,}; set {MOST_IMAGES} or fewer, or leave them out of {option}metrics"
        )


def check_shape(reference: Images, images: Images, option: str = "--") -> None:
    """Raises `UserError` for a reference of another shape than the images that are compared with it."""
    theirs, ours = ("x".join(map(str, some.shape)) for some in (reference, images))
    if theirs != ours:
        raise UserError(
            f"{option}reference: its images are {theirs} (channels, height, width), {images.called} {ours}; they can only be"
            " compared with images of their own size"
        )


def _training_set(data: Data | None, seed: int, reference: Reference | None, option: str) -> PreparedStore:
    """The labelled images that a small classifier is trained on: the model's own, else the reference's."""
    if data is not None:
        return training_images(data, seed).store
    images = reference.images if isinstance(reference, Chosen) else reference
    if isinstance(images, StoreImages):
        return images.store
    raise UserError(
        f"{option}extractor: classifier is trained on a recipe's labelled images, and there is none here; name a recipe by"
        f" {option}reference, or another extractor"
    )


def _num_classes(images: Images, reference: Reference | None, data: Data | None, seed: int, option: str) -> int:
    """The classes that the images were asked for in."""
    labels = images.labels
    if isinstance(images, DrawnImages):
        number = images.pipe.config.num_classes
    elif isinstance(reference, Images) and reference.class_names is not None:
        number = len(reference.class_names)
    else:
        number = None if labels is None else int(labels.max()) + 1
    if labels is None or not np.all((labels >= 0) & (labels < number)):
        raise UserError(
            f"{option}metrics: class_agreement needs images that were drawn by class; {images.called} were not"
        )
    return number


def _title(images: Images, state: PartialState) -> str:
    shared = f" on {state.num_processes} processes" if state.num_processes > 1 else ""
    if isinstance(images, DrawnImages):
        return f"{len(images):,} images, {images.passes} steps{shared}"
    return f"{len(images):,} images{shared}"
