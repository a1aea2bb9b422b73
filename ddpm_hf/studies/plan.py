"""What a study does at a scale: trainings, and what is drawn and measured afterwards, as commands that a user could type."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm_hf.config import (
    AnyRecipe,
    AutoencoderRecipe,
    Recipe,
    did_you_mean,
    load_recipe,
    parse_value,
    recipe_kind,
    setting_keys,
)
from ddpm_hf.errors import UserError
from ddpm_hf.studies.schema import Measurement, Scale
from ddpm_hf.studies.study import StudyFile, Way, making_of

STRIP_ROWS = 8  # images of a strip, which `ddpm-hf sample --strip` draws at most


@dataclass(frozen=True)
class Training:
    """A variant that is trained. identity: differs where its result would; source: its images, wherever they lie."""

    variant: str
    recipe: AnyRecipe
    command: list[str]  # after `python`
    run: Path
    identity: str
    needs: str | None  # the variant of its autoencoder
    needs_gpu: bool
    may_fail: bool

    @property
    def source(self) -> str:
        return self.recipe.data.source


@dataclass(frozen=True)
class Job:
    """A `ddpm-hf` command that leaves `out`. asked: differs where that would."""

    name: str
    variant: str
    command: list[str]  # after `ddpm-hf`
    out: Path
    asked: str
    needs: tuple[str, ...]  # variants that must be trained


@dataclass(frozen=True)
class Plan:
    file: StudyFile
    scale_name: str
    out: Path
    settings: Mapping[str, str] = field(default_factory=dict)  # of recipes, from the command line, as text
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # settings of the scale's evaluation, likewise
    trainings: dict[str, Training] = field(default_factory=dict)
    pipelines: dict[str, str] = field(default_factory=dict)  # variants that are trained already
    jobs: dict[str, Job] = field(default_factory=dict)

    @cached_property
    def scale(self) -> Scale:
        """With what the command line says of the evaluation."""
        scale = getattr(self.file.study, self.scale_name)
        return scale.model_copy(update={"evaluate": scale.evaluate.model_copy(update=dict(self.evaluation))})

    @property
    def variants(self) -> list[str]:
        """Those that are there at this scale, in the file's order."""
        return [name for name in self.file.study.variants if name in self.trainings or name in self.pipelines]


def record_of(plan: Plan, measurement: str) -> Path:
    return plan.out / "records" / f"{measurement}.json"


def drawn(plan: Plan, measurement: str) -> Path:
    return plan.out / "drawn" / f"{measurement}.npz"


def strip_of(plan: Plan, measurement: str) -> Path:
    return plan.out / "drawn" / f"{measurement}-strip.png"


def neighbours_of(plan: Plan, measurement: str) -> Path:
    return plan.out / "drawn" / f"{measurement}-neighbours.png"


def make_plan(
    file: StudyFile,
    scale: str,
    out: Path,
    settings: Mapping[str, str] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Plan:
    """Loads every recipe with its settings, so that each mistake comes before the first training."""
    file = file.at(scale)
    plan = Plan(file, scale, out, settings or {}, evaluation or {})
    for name in file.study.variants:
        making = making_of(file.study, name, scale)
        if making.pipeline is not None:
            plan.pipelines[name] = making.pipeline
        elif making.recipe is not None:
            plan.trainings[name] = _training(plan, name, making.recipe, making.set)
    for way in file.ways.values():
        if way.variant in plan.variants:
            _add_jobs(plan, way)
    in_order = sorted(plan.jobs.values(), key=lambda job: job.command[0] != "evaluate")  # records before pictures
    plan.jobs.clear()
    plan.jobs.update({job.name: job for job in in_order})
    return plan


def shown(command: list[str], program: str = "") -> str:
    """A command as a user types it."""
    return shlex.join([*program.split(), *command])


def _training(plan: Plan, name: str, recipe: str, settings: dict[str, Any]) -> Training:
    variant = plan.file.study.variants[name]
    kind = recipe_kind(recipe)
    known = setting_keys(kind)
    for key in (key for key in settings if key not in known):
        raise UserError(
            f"{plan.file.path}: variants.{name}.set: {key}: no such setting{did_you_mean(key, list(known))}"
        )
    wanted = _over({key: value for key, value in plan.scale.set.items() if key in known}, settings)
    wanted |= {"run.name": name, "run.output_dir": str(plan.out / "runs")}
    through = plan.trainings.get(variant.autoencoder) if variant.autoencoder else None
    if through is not None:
        wanted["autoencoder.source"] = str(through.run / "autoencoder")
    given = {key: parse_value(key, text, kind) for key, text in plan.settings.items() if key in known}
    wanted = _over(wanted, given)
    if wanted.get("evaluate.every") is not None:  # what is measured during training is comparable with what is after it
        measured = plan.scale.evaluate
        wanted = {"evaluate.extractor": measured.extractor} | wanted
        if measured.extractor_weights is not None:
            wanted["evaluate.extractor_weights"] = measured.extractor_weights
    try:
        if "hub.repo_id" in wanted or (kind is Recipe and load_recipe(recipe).hub.repo_id is not None):
            wanted["hub.repo_id"] = None  # a repository is one model's, and variants are many
        loaded = load_recipe(recipe, wanted, kind)
    except UserError as error:
        raise UserError(f"variants.{name}: {error}") from None
    script = "train_unconditional"
    if kind is AutoencoderRecipe:
        script = "train_autoencoder"
    elif isinstance(loaded, Recipe) and loaded.autoencoder.source is not None:
        script = "train_cfg_latent"
    options = [part for key, value in wanted.items() for part in (f"--{key}", _text(value))]
    return Training(
        name,
        loaded,
        ["-m", script, "--config", recipe, *options],
        plan.out / "runs" / name,
        digest([_result_settings(loaded), through and through.identity]),
        through and through.variant,
        variant.needs_gpu,
        variant.may_fail,
    )


def _over(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """`settings` with `others` over them; of the two ways to give the length the last counts."""
    lengths = {"train.max_steps", "train.epochs"}
    dropped = lengths if any(others.get(key) is not None for key in lengths) else set()
    return {key: value for key, value in settings.items() if key not in dropped} | others


def _text(value: Any) -> str:
    """A setting's value as the command line takes it: `parse_value` reads it back."""
    return value if isinstance(value, str) else json.dumps(value)


def _result_settings(recipe: AnyRecipe) -> dict[str, Any]:
    """The settings on which a training's result depends, where its images lie aside."""
    settings = {}
    for section, values in recipe.model_dump(mode="json").items():
        fields = type(getattr(recipe, section)).model_fields
        settings[section] = {key: v for key, v in values.items() if not fields[key].json_schema_extra["may_change"]}
    settings["train"] |= {"max_steps": recipe.train.max_steps, "epochs": recipe.train.epochs}
    return settings


def _add_jobs(plan: Plan, way: Way) -> None:
    """The commands that measure a variant drawn from in one way, and that draw from it for the figures."""
    study, evaluation = plan.file.study, plan.scale.evaluate
    model = str(plan.trainings[way.variant].run) if way.variant in plan.trainings else plan.pipelines[way.variant]
    needs, reference = [way.variant] if way.variant in plan.trainings else [], evaluation.reference
    if not needs and plan.trainings:  # a model without a recipe is compared with the first variant's images
        first = next(iter(plan.trainings.values()))
        needs, reference = [first.variant], str(first.run)
    sampling = _sampling(way)
    pictured = {
        kind: [f for f in study.figures if f.kind == kind and way.name in _members(plan.file, f.of)]
        for kind in ("samples", "strip", "neighbours")
    }

    def add(name: str, command: list[str], out: Path) -> None:
        training = plan.trainings.get(way.variant)
        what = [part.removeprefix(str(plan.out)) for part in command]  # wherever the study's folder lies
        asked = digest([what, training and training.identity])
        how = ["--batch_size", str(evaluation.batch_size), "--out", str(out)]  # which change no result
        plan.jobs[name] = Job(name, way.variant, [*command, *how], out, asked, tuple(needs))

    record = record_of(plan, way.name)
    command = ["evaluate", model, "--num_images", str(evaluation.num_images), "--metrics", *_metrics(plan, way)]
    command += ["--extractor", evaluation.extractor, "--reference", reference]
    if evaluation.extractor_weights is not None:
        command += ["--extractor_weights", evaluation.extractor_weights]
    if evaluation.reference_images is not None:
        command += ["--reference_images", str(evaluation.reference_images)]
    command += sampling
    if pictured["neighbours"]:
        command += ["--neighbours", str(neighbours_of(plan, way.name))]
    add(way.name, command, record)
    if pictured["samples"] or pictured["strip"]:
        number = max([f.num_images for f in pictured["samples"]], default=STRIP_ROWS)
        command = ["sample", model, "--num_images", str(number), *sampling]
        if pictured["strip"]:
            command += ["--strip", str(strip_of(plan, way.name))]
        add(f"{way.name}, pictures", command, drawn(plan, way.name))


def _members(file: StudyFile, names: str | tuple[str, ...]) -> list[str]:
    return [member for name in ([names] if isinstance(names, str) else names) for member in file.members(name)]


def _metrics(plan: Plan, way: Way) -> list[str]:
    """Those of the scale that the variant can have: class agreement is of conditional models."""
    training = plan.trainings.get(way.variant)
    conditional = training is not None and training.recipe.condition.num_classes is not None
    return [metric for metric in plan.scale.evaluate.metrics if conditional or metric != "class_agreement"]


def _sampling(way: Way) -> list[str]:
    options = ["--sampler", way.sampler]
    for name in ("steps", "eta", "guidance_scale", "guidance_interval", "precision"):
        value = getattr(way, name)
        if value != DEFAULTS[name]:
            texts = [f"{v:g}" for v in value] if isinstance(value, tuple) else [str(value)]
            options += [f"--{name}", *texts]
    return options


DEFAULTS = {
    name: field.default[0] if isinstance(field.default, tuple) else field.default
    for name, field in Measurement.model_fields.items()
}


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
