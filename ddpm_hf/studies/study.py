"""A study read from its file: checked as a whole, so that a mistake in its last table comes before its first training."""

import difflib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ddpm_hf.config.files import read_yaml, shipped_configs
from ddpm_hf.config.messages import describe, did_you_mean
from ddpm_hf.errors import UserError
from ddpm_hf.studies import schema
from ddpm_hf.studies.columns import COLUMNS
from ddpm_hf.studies.schema import Measurement, Study


@dataclass(frozen=True)
class Way:
    """One way of drawing from a variant: a measurement with a single value of each setting."""

    name: str
    variant: str
    label: str
    sampler: str
    steps: int | None
    eta: float
    guidance_scale: float
    guidance_interval: tuple[float, float] | None
    precision: str


@dataclass(frozen=True)
class StudyFile:
    """A study and where it was read; its measurements without families."""

    name: str
    path: Path
    study: Study

    @property
    def is_shipped(self) -> bool:
        """Whether its name is enough to find it."""
        shipped = shipped_configs()
        return shipped is not None and self.path == shipped / "studies" / f"{self.name}.yaml"

    def at(self, scale: str) -> "StudyFile":
        """With the variants' labels at a scale."""
        labels = {name: getattr(variant, scale).label or variant.label for name, variant in self.study.variants.items()}
        variants = {name: v.model_copy(update={"label": labels[name]}) for name, v in self.study.variants.items()}
        return replace(self, study=self.study.model_copy(update={"variants": variants}))

    @cached_property
    def families(self) -> dict[str, list[Way]]:
        """Of each measurement in the file, what it stands for."""
        return {name: list(_ways(name, one, self.study)) for name, one in self.study.measurements.items()}

    @cached_property
    def ways(self) -> dict[str, Way]:
        return {way.name: way for family in self.families.values() for way in family}

    def members(self, name: str) -> list[str]:
        """The measurements that a name in a row, claim or figure stands for; a variant stands for itself."""
        if name in self.families:
            return [way.name for way in self.families[name]]
        return [name]

    def label(self, name: str) -> str:
        """Of a measurement or a variant."""
        if name in self.ways:
            return self.ways[name].label
        return self.study.variants[name].label or name


def load_study(name: str) -> StudyFile:
    """From a YAML file, or the name of a study that comes with the package.

    Raises `UserError` with one line: the key, what is wrong and what would be right.
    """
    path = _study_path(name)
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: a study is a mapping of sections such as variants: and tables:, not a {type(tree).__name__}"
        )
    if "data" in tree and "variants" not in tree:
        raise UserError(f"{path}: is a recipe, which train_unconditional.py or its like trains; a study has variants:")
    try:
        study = Study.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        # a misspelt setting before the one that is missing for it
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{path}: {_explain(problems[0])}{more}") from None
    file = StudyFile(path.stem, path, study)
    for problem in _dangling(file):
        raise UserError(f"{path}: {problem}")
    return file


def _study_path(name: str) -> Path:
    if (path := Path(name)).is_file():
        return path
    shipped = shipped_configs()
    studies = {p.stem: p for p in sorted((shipped / "studies").glob("*.yaml"))} if shipped else {}
    stem = name.removesuffix(".yaml").rpartition("studies/")[2]
    if stem in studies:
        return studies[stem]
    near = difflib.get_close_matches(stem, studies, n=1)
    raise UserError(
        f"{name}: no such study"
        + (f"; did you mean {near[0]}?" if near else f"; name a YAML file, or one of {', '.join(studies)}")
    )


def _ways(name: str, measurement: Measurement, study: Study) -> Iterator[Way]:
    lists = {"sampler": measurement.sampler, "steps": measurement.steps or (None,)}
    lists["guidance_scale"] = measurement.guidance_scale
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        suffix = [_plain(value) for key, value in chosen.items() if len(lists[key]) > 1]
        variant = study.variants.get(measurement.of)
        label = measurement.label or (variant and variant.label) or (name if not suffix else "_".join([name, *suffix]))
        yield Way(
            "_".join([name, *suffix]),
            measurement.of,
            label.format(**{key: _plain(value) for key, value in chosen.items()}),
            eta=measurement.eta,
            guidance_interval=measurement.guidance_interval,
            precision=measurement.precision,
            **chosen,
        )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _dangling(file: StudyFile) -> Iterator[str]:
    """Names that stand for nothing."""
    study = file.study
    for name, variant in study.variants.items():
        for scale in schema.SCALES:
            if (making := making_of(study, name, scale)).recipe and making.pipeline:
                yield f"variants.{name}: has a recipe and a pipeline; keep one of them"
        yield from _unknown(f"variants.{name}.autoencoder", variant.autoencoder, study.variants, "variant")
    for name, measurement in study.measurements.items():
        yield from _unknown(f"measurements.{name}.of", measurement.of, study.variants, "variant")
    measured = [*file.families, *file.ways]
    for i, table in enumerate(study.tables):
        here = f"tables.{i} ({table.title})"
        for column in table.columns:
            yield from _unknown(f"{here}.columns", column, COLUMNS, "column")
        for row in table.rows:
            yield from _unknown(f"{here}.rows", row.of, [*measured, *study.variants], "measurement")
            for column in row.reported:
                yield from _unknown(f"{here}.rows.reported", column, table.columns, "column of this table")
        for claim in table.claims:
            yield from _unknown(f"{here}.claims.by", claim.by, COLUMNS, "column")
            for name in claim.names:
                yield from _unknown(f"{here}.claims", name, [*file.ways, *study.variants], "measurement")
    for i, figure in enumerate(study.figures):
        here = f"figures.{i} ({figure.title})"
        named = (figure.of,) if isinstance(getattr(figure, "of", ()), str) else getattr(figure, "of", ())
        known = study.variants if figure.kind in ("curves", "evolution") else measured
        for name in named:
            yield from _unknown(f"{here}.of", name, known, "variant" if known is study.variants else "measurement")
        if figure.kind == "trade_off":
            for name in itertools.chain(*figure.lines.values()):
                yield from _unknown(f"{here}.lines", name, measured, "measurement")
            for column in filter(None, (figure.x, figure.y, figure.points)):
                yield from _unknown(here, column, COLUMNS, "column")
        if figure.kind == "curves":
            for column in figure.show:
                yield from _unknown(f"{here}.show", column, COLUMNS, "column")


def _unknown(key: str, name: str | None, known: Any, what: str) -> Iterator[str]:
    if name is not None and name not in known:
        yield f"{key}: {name} is no {what}" + (did_you_mean(name, list(known)) or f"; there are {', '.join(known)}")


def making_of(study: Study, variant: str, scale: str) -> schema.Making:
    """Where a variant comes from at a scale: what it says of that scale over what it says of all."""
    general = study.variants[variant]
    special = getattr(general, scale)
    given = special.model_fields_set & {"recipe", "pipeline"}
    source = special if given else general
    return schema.Making(recipe=source.recipe, pipeline=source.pipeline, set={**general.set, **special.set})


_TAGS = [kind.model_fields["kind"].annotation for kind in get_args(get_args(schema.Figure)[0])]
_KINDS = [get_args(tag)[0] for tag in _TAGS]


def _explain(error: ErrorDetails) -> str:
    """One of Pydantic's findings as `key: what is wrong; what would be right`."""
    where = [part for i, part in enumerate(error["loc"]) if not (i == 2 and part in _KINDS)]
    key = ".".join(map(str, where))
    if error["type"] == "extra_forbidden":
        names = {
            name
            for part in vars(schema).values()
            if isinstance(part, type) and issubclass(part, BaseModel)
            for name in part.model_fields
        }
        return f"{key}: no such setting{did_you_mean(str(where[-1]), sorted(names))}"
    if error["type"] == "union_tag_invalid":
        tag = error["ctx"]["tag"]
        return f"{key}.kind: {tag!r} is not one of {', '.join(_KINDS)}{did_you_mean(tag, _KINDS)}"
    if error["type"] == "union_tag_not_found":
        return f"{key}.kind: is missing; it is one of {', '.join(_KINDS)}"
    return describe(key or "the study", error)
