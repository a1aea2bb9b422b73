"""What a visitor asks for: checked, whoever sends it, and as the query of a link.

Values arrive as JSON from the page or from any other client; what is wrong with one is a `UserError` in one line.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

from ddpm_hf.app.models import Model
from ddpm_hf.diffusion.samplers import SAMPLERS
from ddpm_hf.errors import UserError
from ddpm_hf.sampling import Sampling

EACH, ANY = "each", "any"  # every class in turn; the null class, no class in particular
LARGEST_SEED = 2**32 - 1
LARGEST_GUIDANCE = 10.0


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for."""

    max_images: int = 64
    max_steps: int = 250

    def steps(self, model: Model) -> int:
        return min(self.max_steps, model.timesteps)


@dataclass(frozen=True)
class Settings:
    """How to draw, whatever the seeds.

    `model`: a name of those on the page. `class_label`: an id as text, `EACH` or `ANY`; None of a model without classes.
    `low` and `high`: the guidance interval, noise levels; `high` may be infinite. The rest as `Sampling` has it.
    """

    model: str
    class_label: str | None
    sampler: str
    steps: int
    guidance: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def sampling(self, model: Model) -> Sampling:
        """The same for `ddpm_hf.sampling`."""
        if self.class_label in (None, EACH):
            label = None
        else:
            label = model.num_classes if self.class_label == ANY else int(self.class_label)
        # towards no class in particular there is nothing to guide
        scale = 1.0 if self.class_label in (None, ANY) else self.guidance
        everywhere = scale == 1 or (self.low, self.high) == (0, math.inf)
        interval = None if everywhere else (self.low, self.high)
        return Sampling(self.sampler, self.steps, class_label=label, guidance_scale=scale, guidance_interval=interval)


@dataclass(frozen=True)
class Request:
    """`count` pictures, of the seeds `seed`, `seed` + 1 and so on, for each of the settings: one, or two to compare."""

    count: int
    seed: int
    settings: tuple[Settings, ...]

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.count)


FIELDS = {  # the fields of Settings and Request, as the page calls them
    "model": "model",
    "class_label": "class",
    "sampler": "sampler",
    "steps": "steps",
    "guidance": "guidance",
    "low": "lowest noise level",
    "high": "highest noise level",
    "count": "how many",
    "seed": "seed",
}
OF_SETTINGS = ("model", "class_label", "sampler", "steps", "guidance", "low", "high")


def default_settings(model: Model, limits: Limits) -> Settings:
    conditional = model.num_classes is not None
    return Settings(
        model.name,
        (EACH if model.num_classes <= limits.max_images else ANY) if conditional else None,
        "dpmsolver++",
        min(25, limits.steps(model)),
        2.0 if conditional else 1.0,
    )


def default_count(model: Model, limits: Limits) -> int:
    """About sixteen; of a few classes as many of each."""
    classes = model.num_classes
    count = 16 if classes is None or classes > 20 else max(1, round(16 / classes)) * classes
    return min(count, limits.max_images)


def check_settings(values: Mapping[str, Any], models: Mapping[str, Model], limits: Limits) -> Settings:
    """`values` has every field of `Settings`, of any type."""
    model = _model_of(values["model"], models)
    label = _class_of(values["class_label"], model)
    if values["sampler"] not in list(SAMPLERS):
        raise UserError(f"sampler: {_shown(values['sampler'])} is none of {', '.join(SAMPLERS)}")
    steps = _whole("steps", values["steps"], 1, limits.steps(model))
    if label is None:  # a model without classes has nothing to guide towards; its page shows no such controls
        return Settings(model.name, None, values["sampler"], steps)
    guidance = _number("guidance", values["guidance"], 1, LARGEST_GUIDANCE)
    low = 0.0 if values["low"] is None else _number("low", values["low"], 0, math.inf)
    high = math.inf if values["high"] is None else _number("high", values["high"], 0, math.inf)
    if not low < high:
        raise UserError(f"{FIELDS['low']}: {low:g} should be below the {FIELDS['high']}, {high:g}")
    return Settings(model.name, label, values["sampler"], steps, guidance, low, high)


def check_count(count: Any, limits: Limits) -> int:
    return _whole("count", count, 1, limits.max_images)


def check_seed(seed: Any) -> int:
    return _whole("seed", seed, 0, LARGEST_SEED)


def check_request(values: Mapping[str, Any], models: Mapping[str, Model], limits: Limits) -> Request:
    """`values` has `count`, `seed` and the fields of `Settings`."""
    count, seed = check_count(values["count"], limits), check_seed(values["seed"])
    return Request(count, seed, (_affordable(check_settings(values, models, limits), limits),))


def check_comparison(
    values: Mapping[str, Any], sides: Sequence[Mapping[str, Any]], models: Mapping[str, Model], limits: Limits
) -> Request:
    """`values` has `count` and `seed`, each of the two `sides` the fields of `Settings`. Both draw `count` pictures."""
    count, seed = check_count(values["count"], limits), check_seed(values["seed"])
    settings = []
    for side, letter in zip(sides, "AB", strict=True):
        try:
            settings.append(_affordable(check_settings(side, models, limits), limits))
        except UserError as error:
            raise UserError(f"{letter}, {error}") from None
    return Request(count, seed, tuple(settings))


def _affordable(settings: Settings, limits: Limits) -> Settings:
    """A step of heun is two passes, the last but one."""
    if settings.sampler == "heun" and 2 * settings.steps - 1 > limits.max_steps:
        most = (limits.max_steps + 1) // 2
        raise UserError(f"steps: {settings.steps} of heun, of two passes each, are too many; at most {most}")
    return settings


def _model_of(name: Any, models: Mapping[str, Model]) -> Model:
    if not isinstance(name, str) or name not in models:
        raise UserError(f"model: {_shown(name)} is none of {', '.join(models)}")
    return models[name]


def _class_of(value: Any, model: Model) -> str | None:
    if model.num_classes is None:
        if value is not None:
            raise UserError(f"class: {model.name} knows no classes; leave it out")
        return None
    known = [EACH, ANY, *map(str, range(model.num_classes))]
    if value not in known or not isinstance(value, str):
        raise UserError(f"class: {_shown(value)} is none of {EACH}, {ANY} and 0 to {model.num_classes - 1}")
    return value


def _whole(field: str, value: Any, least: int, most: int) -> int:
    number = _number(field, value, least, most, "a whole number")
    if number != int(number):
        raise UserError(f"{FIELDS[field]}: {_shown(value)} should be a whole number")
    return int(number)


def _number(field: str, value: Any, least: float, most: float, kind: str = "a number") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        span = f"of at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:.12g}"
        raise UserError(f"{FIELDS[field]}: {_shown(value)} should be {kind} {span}")
    return float(value) if kind == "a number" else value


def _shown(value: Any) -> str:
    """What was sent, in at most a few words."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


# As a link: parameters are named as the fields are; the second of two settings has "2" after each of its own.
_AS_LINKED = {"class_label": "class"}


def to_query(request: Request) -> str:
    """`?count=10&seed=0&model=...`, without what is as it would be anyway."""
    pairs: dict[str, Any] = {"count": request.count, "seed": request.seed}
    for settings, suffix in zip(request.settings, ("", "2"), strict=False):
        given = asdict(settings)
        plain = {"low": 0.0, "high": math.inf} | (
            {"class_label": None, "guidance": 1.0} if settings.class_label is None else {}
        )
        for field in OF_SETTINGS:
            if field not in plain or given[field] != plain[field]:
                value = given[field]
                pairs[_AS_LINKED.get(field, field) + suffix] = (
                    repr(value).removesuffix(".0") if isinstance(value, float) else value
                )
    return "?" + urlencode(pairs)


def from_query(query: Mapping[str, str], models: Mapping[str, Model], limits: Limits) -> tuple[Request, list[str]]:
    """What a link asks for, and a line for each parameter that is wrong, whose default takes its place.

    Two settings if there is a `model2`. Parameters of other names are not this page's business.
    """
    wrong = []

    def taken(parameter: str, check: Callable[[str], Any], default: Any) -> Any:
        if parameter not in query:
            return default
        try:
            return check(query[parameter])
        except UserError as error:
            wrong.append(str(error))
            return default

    both = []
    for suffix in ("", "2")[: 1 + ("model2" in query)]:
        name = taken(f"model{suffix}", lambda text: _model_of(text, models).name, next(iter(models)))
        settings = default_settings(models[name], limits)
        for field in OF_SETTINGS[1:]:

            def changed(text: str, field: str = field, settings: Settings = settings) -> Settings:
                value = text if field in ("class_label", "sampler") else _parsed(text)
                return check_settings(asdict(settings) | {field: value}, models, limits)

            settings = taken(_AS_LINKED.get(field, field) + suffix, changed, settings)
        both.append(settings)
    count = taken(
        "count", lambda text: check_count(_parsed(text), limits), default_count(models[both[0].model], limits)
    )
    seed = taken("seed", lambda text: check_seed(_parsed(text)), 0)
    return Request(count, seed, tuple(both)), wrong


def _parsed(text: str) -> int | float | str:
    """A number where the text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
