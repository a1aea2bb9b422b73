"""A study's tables, with the report's own figures beside ours."""

from dataclasses import dataclass

from ddpm_hf.studies.columns import COLUMNS
from ddpm_hf.studies.results import Outcome, Results
from ddpm_hf.studies.schema import Table

_THEIRS = {
    "frechet": "FID",
    "kernel": "KID",
    "score": "IS",
}  # what a report's figures are, Inception's whatever ours are


@dataclass(frozen=True)
class Line:
    """A row with what it stands for, families resolved."""

    label: str
    of: str | None
    outcome: Outcome | None
    reported: dict[str, float | tuple[float, float]]


def lines(table: Table, results: Results) -> list[Line]:
    """Those that are there at the plan's scale, and those of the report alone."""
    file, found = results.plan.file, []
    for row in table.rows:
        if row.of is None:
            found.append(Line(row.label or "", None, None, row.reported))
            continue
        for name in file.members(row.of):
            variant = file.ways[name].variant if name in file.ways else name
            if variant in results.plan.variants:
                label = file.label(name) if row.label is None else row.label
                found.append(Line(label, name, results.of(name), row.reported))
            elif row.reported:
                found.append(Line(row.label or file.label(name), None, None, row.reported))
    return found


def markdown(table: Table, results: Results) -> str:
    rows, ours = lines(table, results), table.columns
    heads = [""]
    for column in ours:
        theirs = column in _THEIRS and any(column in line.reported for line in rows)
        heads.append(results.header(column) + (f"<br>*report: {_THEIRS[column]}*" if theirs else ""))
    body = []
    for line in rows:
        cells = [line.label]
        if line.outcome is not None and line.outcome.problem is not None:
            cells[0] += f"<br>*{escape(line.outcome.problem)}*"
        for column in ours:
            parts = []
            if line.outcome is not None and column in line.outcome.values:
                value = number(column, line.outcome.values[column])
                if column in line.outcome.spreads:
                    value += f" ± {line.outcome.spreads[column]:.2g}"
                parts.append(value)
            elif line.outcome is not None and column == "epochs_to_quality" and "epochs" in line.outcome.values:
                parts.append(f"not in {number('epochs', line.outcome.values['epochs'])}")
            if column in line.reported:
                parts.append(f"*{verbatim(column, line.reported[column])}*")
            cells.append("<br>".join(parts) or "-")
        body.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] + ["---:"] * len(ours), *body))


def number(column: str, value: float) -> str:
    about = COLUMNS[column]
    if about.whole:
        return f"{round(value):,}"
    if about.unit == "h":
        return next(
            f"{value * n:.3g} {unit}"
            for n, unit in ((1, "h"), (60, "min"), (3600, "s"))
            if value * n >= 1.5 or n == 3600
        )
    if abs(value) >= 1000:
        return f"{value:,.0f} {about.unit}".strip()
    digits = 3 if about.unit or abs(value) <= 1 else 4
    return f"{value:.{digits}g} {about.unit}".strip()


def verbatim(column: str, reported: float | tuple[float, float]) -> str:
    """A report's own figure, with all its digits."""
    value, *deviation = reported if isinstance(reported, tuple) else (reported,)
    digits = f"{value:,.0f}" if COLUMNS[column].whole else f"{value:g}"
    return " ".join(filter(None, [digits, *(f"± {d:g}" for d in deviation), COLUMNS[column].unit]))


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")
