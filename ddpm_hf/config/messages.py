"""What a wrong recipe is told: one line with the key, what is wrong and what would be right."""

import difflib
import json
import re
from typing import Any

from pydantic_core import ErrorDetails

from ddpm_hf.config.recipes import AnyRecipe, section_kinds, setting_keys

_SHOULD_BE = {
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "bool_type": "should be true or false",
    "string_type": "should be text; put it in quotes",
    "tuple_type": "should be a list such as [1, 2]",
    "model_type": "should be a section with settings below it",
    "missing": "is missing",
}
_LIMITS = {
    "ge": "at least",
    "gt": "more than",
    "le": "at most",
    "lt": "less than",
    "min_length": "of length at least",
    "multiple_of": "a multiple of",
}


_ALSO_CALLED = {
    "cosine": "squaredcos_cap_v2",
    "v": "v_prediction",
    "x0": "sample",
    "noise": "epsilon",
    "dpm++": "dpmsolver++",
    "fid": "frechet",
    "kid": "kernel",
    "inception_score": "score",
    "precision": "precision_recall",
    "recall": "precision_recall",
    "density": "density_coverage",
    "coverage": "density_coverage",
    "nll": "bits_per_dimension",
}


def did_you_mean(word: str, known: list[str]) -> str:
    if (other := _ALSO_CALLED.get(word.lower())) in known:
        return f"; did you mean {other}?"
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _plain(value: Any) -> str:
    """A value as YAML would write it."""
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str)


def explain(error: ErrorDetails, recipe: type[AnyRecipe]) -> str:
    """One of Pydantic's findings as `key: what is wrong; what would be right`."""
    where = list(error["loc"])
    if where[:1] == ["model"] and len(where) > 1 and len(section_kinds("model", recipe)) > 1:
        denoiser = where.pop(1)  # Pydantic's mark of the union's member
    key = ".".join(map(str, where))
    given, kind, context = error["input"], error["type"], error.get("ctx", {})
    if kind == "contradiction":
        return f"{context['key']}: {context['text']}"
    if kind == "extra_forbidden":
        section, _, name = key.rpartition(".")
        if not section:
            return f"{key}: no such section{did_you_mean(name, list(recipe.model_fields))}"
        keys = list(setting_keys(recipe))
        if key in keys:  # of another kind of denoiser
            kind = next(k for k in section_kinds("model") if k.model_fields["kind"].default == denoiser)
            theirs = ", ".join(n for n in kind.model_fields if n not in ("kind", "pretrained"))
            return f"{key}: model.kind {denoiser} has no such setting; it has {theirs}"
        return f"{key}: no such setting{did_you_mean(key, keys)}"
    if kind == "union_tag_invalid":
        choices = [c.strip("' ") for c in context["expected_tags"].split(",")]
        return f"model.kind: {_plain(context['tag'])} is not one of {', '.join(choices)}{did_you_mean(str(context['tag']), choices)}"
    if kind == "missing":
        field = setting_keys(recipe).get(key)
        return f"{key}: is missing" + (f"; it is {field.description}" if field else "; a recipe needs it")
    if key.startswith("data.resolution") and not _LIMITS.keys() & context.keys():
        return "data.resolution: " + f"{_plain(given)} should be one number, or [height, width]"
    return describe(key, error)


def describe(key: str, error: ErrorDetails) -> str:
    """A value that is of the wrong type or out of range, whatever file it is in."""
    given, kind, context = error["input"], error["type"], error.get("ctx", {})
    if kind == "missing":
        return f"{key}: is missing"
    if kind == "value_error":
        return f"{key}: {context['error']}"
    if kind == "literal_error":
        choices = [c.strip("'") for c in re.split(r", | or ", context["expected"])]
        return f"{key}: {_plain(given)} is not one of {', '.join(choices)}{did_you_mean(str(given), choices)}"
    for limit, words in _LIMITS.items():
        if limit in context:
            return f"{key}: {_plain(given)} must be {words} {context[limit]}"
    if kind == "too_short":
        return f"{key}: {_plain(given)} needs at least {context['min_length']} value"
    return f"{key}: {_plain(given)} {_SHOULD_BE.get(kind, error['msg'][0].lower() + error['msg'][1:])}"
