"""What trainings and measurements have left behind, as values by column."""

import json
import math
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm_hf.config import AnyRecipe
from ddpm_hf.data.prepare import images_in
from ddpm_hf.data.sampler import split_held_out
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.metrics import key as metric_key
from ddpm_hf.evaluation.metrics import label as metric_label
from ddpm_hf.studies.columns import COLUMNS, EXTRACTED
from ddpm_hf.studies.plan import Plan, record_of
from ddpm_hf.studies.progress import Progress

_SPREADS = ("_standard_error", "_deviation")
SHARES = {"class_agreement", "precision", "recall"}  # of so many images


@dataclass
class Outcome:
    """Of a measurement, or of a variant alone.

    values, spreads: by column; a spread is a standard error or a deviation, as records have it
    errors: standard errors by column, a share's as of a binomial distribution
    problem: why there are none, or no more; None where all is well
    """

    values: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


class Results:
    """Of a plan, as far as it has come."""

    def __init__(self, plan: Plan, progress: Progress, has_gpu: bool) -> None:
        self.plan, self.progress, self.has_gpu = plan, progress, has_gpu
        self._lines: dict[str, list[dict[str, Any]]] = {}

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """The records of the measurements that are done."""
        done = {name: job for name, job in self.plan.jobs.items() if job.out == record_of(self.plan, name)}
        return {name: json.loads(job.out.read_text()) for name, job in done.items() if self.progress.is_done(job)}

    @cached_property
    def extractor(self) -> str:
        """Its name, as the keys of records have it."""
        for record in self.records.values():
            if record.get("extractor"):
                return record["extractor"]["name"]
        named = self.plan.scale.evaluate.extractor
        return Path(named).stem if Path(named).suffix else named

    def key(self, column: str) -> str:
        """A column's key in records and in metrics.jsonl."""
        return metric_key(column, self.extractor) if column in EXTRACTED else column

    def header(self, column: str) -> str:
        return COLUMNS[column].header or metric_label(self.key(column))

    def of(self, name: str) -> Outcome:
        """By the name of a measurement or of a variant."""
        if name not in self.plan.file.ways:
            return self.of_variant(name)
        variant = self.plan.file.ways[name].variant
        outcome = self.of_variant(variant)
        if (record := self.records.get(name)) is None:
            if outcome.problem is None and name in self.plan.jobs:
                error = self.progress.job(name).get("error")
                outcome.problem = "not measured yet" if error is None else f"failed: {error}"
            return outcome
        outcome.problem = None
        measured, sampling = record["metrics"], record["sampling"] or {}
        for column in COLUMNS:
            if (value := measured.get(self.key(column))) is not None:
                outcome.values[column] = value
                for end in _SPREADS:
                    if (spread := measured.get(self.key(column) + end)) is not None:
                        outcome.spreads[column] = spread
        outcome.errors = {"kernel": outcome.spreads["kernel"]} if "kernel" in outcome.spreads else {}
        for column in SHARES & outcome.values.keys():
            share = outcome.values[column]
            images = record["reference"]["num_images"] if column == "recall" else record["num_images"]
            outcome.errors[column] = math.sqrt(share * (1 - share) / images)
        for found in (record["times"], sampling):
            outcome.values |= {c: found[c] for c in COLUMNS if isinstance(found.get(c), (int, float))}
        return outcome

    def of_variant(self, name: str) -> Outcome:
        training = self.plan.trainings.get(name)
        if training is None:
            absent = None if name in self.plan.pipelines else f"not at {self.plan.scale_name} scale"
            return Outcome(problem=absent)
        done = self.progress.training(name)
        outcome = Outcome()
        if not self.progress.is_trained(training):
            lacking = training.needs_gpu and not self.has_gpu
            error = done.get("error")
            outcome.problem = "needs a GPU" if lacking else "not trained yet" if error is None else f"failed: {error}"
        if done.get("identity") != training.identity:
            return outcome
        values, lines = outcome.values, self.lines(name)
        for column in ("loss", "validation_loss", "skipped_steps"):
            if (last := [line[column] for line in lines if line.get(column) is not None]) and math.isfinite(last[-1]):
                values[column] = last[-1]
        if lines:
            values["optimizer_steps"] = lines[-1]["step"]
            if (epoch := self.images_per_epoch(name)) is not None:
                values["epochs"] = lines[-1]["images_seen"] / epoch
        if seconds := [line["training_seconds"] for line in lines if "training_seconds" in line]:
            values["training_hours"] = seconds[-1] / 3600
        if (parameters := count_parameters(training.run)) is not None:
            values["parameters"] = parameters
        if (epochs := self._epochs_to_quality(name)) is not None:
            values["epochs_to_quality"] = epochs
        return outcome

    def lines(self, variant: str) -> list[dict[str, Any]]:
        """Of its metrics.jsonl."""
        if variant not in self._lines:
            path = self.plan.trainings[variant].run / "metrics.jsonl" if variant in self.plan.trainings else None
            text = path.read_text() if path is not None and path.is_file() else ""
            self._lines[variant] = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return self._lines[variant]

    def curve(self, variant: str, column: str) -> tuple[list[float], list[float | None], str]:
        """A column of its metrics.jsonl against epochs, or against steps where these are not known, and which of the two."""
        key, epoch = self.key(column), self.images_per_epoch(variant)
        lines = [line for line in self.lines(variant) if key in line]
        if epoch is None:
            return [line["step"] for line in lines], [line[key] for line in lines], "optimizer steps"
        return [line["images_seen"] / epoch for line in lines], [line[key] for line in lines], "epochs"

    def images_per_epoch(self, variant: str) -> int | None:
        return images_per_epoch(self.plan.trainings[variant].recipe) if variant in self.plan.trainings else None

    def _epochs_to_quality(self, variant: str) -> float | None:
        quality = self.plan.scale.quality
        if quality is None:
            return None
        epochs, values, unit = self.curve(variant, quality.by)
        good = (x for x, y in zip(epochs, values, strict=True) if y is not None and y <= quality.at_most)
        return next(good, None) if unit == "epochs" else None


_counted: dict[str, int] = {}


def images_per_epoch(recipe: AnyRecipe) -> int | None:
    """None where the images are not at hand."""
    key = json.dumps([recipe.data.model_dump(mode="json"), recipe.run.seed])
    if key not in _counted:
        try:
            _counted[key] = len(split_held_out(images_in(recipe.data), recipe.data.held_out, recipe.run.seed)[0])
        except UserError:
            return None
    return _counted[key]


def count_parameters(run: Path) -> int | None:
    """Of the trained model, by the heads of its files alone."""
    files = [*run.glob("pipeline/unet/*.safetensors"), *run.glob("autoencoder/*.safetensors")]
    if not files:
        return None
    count = 0
    for path in files:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            head = json.loads(file.read(length))
        count += sum(math.prod(about["shape"]) for name, about in head.items() if name != "__metadata__")
    return count
