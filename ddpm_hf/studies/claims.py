"""Whether what a report says shows in what was measured."""

from dataclasses import dataclass
from itertools import pairwise
from math import hypot

from ddpm_hf.studies.results import SHARES, Results
from ddpm_hf.studies.schema import Claim, Table
from ddpm_hf.studies.tables import number, verbatim

AGREES, IN_PART, TIE, DIFFERS, UNKNOWN = "Agrees", "Agrees in part", "Too close to tell", "Differs", "Cannot be said"


@dataclass(frozen=True)
class Verdict:
    """finding: one of the above; text: what the report says, and both sets of numbers."""

    finding: str
    text: str


def judge(claim: Claim, table: Table, results: Results) -> Verdict:
    """By the numbers alone; of neighbours in the claim's order, those that differ by no more than a tie are not told apart."""
    said = f"“{claim.text}”"
    outcomes = {name: results.of(name) for name in claim.names}
    if absent := [name for name in claim.names if claim.by not in outcomes[name].values]:
        label = results.plan.file.label(absent[0])
        problem = outcomes[absent[0]].problem or f"has no {results.header(claim.by).rstrip(' ↑↓')}"
        return Verdict(UNKNOWN, f"{said}: {label}: {problem}.")
    values = [outcomes[name].values[claim.by] for name in claim.names]
    errors = [outcomes[name].errors.get(claim.by, 0.0) for name in claim.names]
    tie = results.plan.scale.tie
    within = tie if claim.within is None else claim.within
    relative = 0.0 if claim.by in SHARES else tie
    if claim.alike is not None:
        alike = max(values) - min(values) <= within * max(map(abs, values))
        finding, how = (AGREES if alike else DIFFERS), f" (alike: within {within:.0%})"
        signs = ["≈" if alike else _sign(a, b, 0) for a, b in pairwise(values)]
    else:
        signs = [_sign(a, b, _margin(a, b, relative, errors[i : i + 2])) for i, (a, b) in enumerate(pairwise(values))]
        right, wrong = ("<", ">") if claim.rises is not None else (">", "<")
        finding, how = _finding(signs, right, wrong), ""
    measured = _chain(
        [f"{results.plan.file.label(n)} {number(claim.by, v)}" for n, v in zip(claim.names, values, strict=True)], signs
    )
    text = f"{said}: {results.header(claim.by).rstrip(' ↑↓')}: {measured}{how}."
    rows = [row for other in (*results.plan.file.study.tables, table) for row in other.rows]  # this table's come last
    reported = {row.of: row.reported[claim.by] for row in rows if row.of and claim.by in row.reported}
    if all(name in reported for name in claim.names):
        theirs = [reported[name] for name in claim.names]
        plain = [value[0] if isinstance(value, tuple) else value for value in theirs]
        close = 0.0 if claim.alike is None else within * max(map(abs, plain))
        signs = [_sign(a, b, close) for a, b in pairwise(plain)]
        text += f" The report: {_chain([verbatim(claim.by, value) for value in theirs], signs)}."
    return Verdict(finding, text)


def _margin(a: float, b: float, tie: float, errors: list[float]) -> float:
    return max(tie * max(abs(a), abs(b)), 2 * hypot(*errors))


def _sign(a: float, b: float, margin: float) -> str:
    return "≈" if abs(a - b) <= margin else "<" if a < b else ">" if a > b else "="


def _finding(signs: list[str], right: str, wrong: str) -> str:
    if wrong in signs:
        return IN_PART if signs.count(right) > signs.count(wrong) else DIFFERS
    if "≈" in signs:
        return IN_PART if right in signs else TIE
    return AGREES


def _chain(values: list[str], signs: list[str]) -> str:
    return " ".join([values[0], *(f"{sign} {value}" for sign, value in zip(signs, values[1:], strict=True))])
