"""A study's report: report.md, results.json and results.csv, from what has been measured and nothing else."""

import csv
import io
import json
import os
import platform
from pathlib import Path
from typing import Any

from ddpm_hf.durations import rough_duration
from ddpm_hf.evaluation.records import versions
from ddpm_hf.files import write_atomically
from ddpm_hf.studies import figures, tables
from ddpm_hf.studies.claims import Verdict, judge
from ddpm_hf.studies.columns import COLUMNS
from ddpm_hf.studies.plan import Plan, shown
from ddpm_hf.studies.results import SHARES, Results
from ddpm_hf.studies.schema import Table


def write_report(results: Results) -> Path:
    """Gives the report's path; the figures lie beside it."""
    plan = results.plan
    plan.out.mkdir(parents=True, exist_ok=True)
    report = plan.out / "report.md"
    write_atomically(report, markdown(results))
    write_atomically(plan.out / "results.json", json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n")
    write_atomically(plan.out / "results.csv", as_csv(results))
    return report


def markdown(results: Results) -> str:
    plan, study = results.plan, results.plan.file.study
    parts = [f"# {study.title}", "", _joined(study.about), "", *_what_was_run(results), ""]
    for table in study.tables:
        parts += _table(table, results)
    if study.figures:
        parts += ["## Figures", ""]
        parts += [figures.markdown(figure, i, results) for i, figure in enumerate(study.figures, 1)]
    parts += ["## Commands", "", "```bash", _command(plan), "```", ""]
    parts += ["<details><summary>What it runs, one by one</summary>", "", "```bash"]
    for training in plan.trainings.values():
        parts += [f"# {training.variant}", shown(training.command, "python")]
    for job in plan.jobs.values():
        parts += [f"# {job.name}", shown(job.command, "ddpm-hf")]
    return "\n".join([*parts, "```", "", "</details>", ""])


def _what_was_run(results: Results) -> list[str]:
    plan, scale = results.plan, results.plan.scale
    records = list(results.records.values())
    lines = ["## What was run", "", f"- **Scale:** {plan.scale_name}. {_joined(scale.about)}"]
    if given := _given(plan):
        lines.append(f"- **Otherwise than that:** `{shown(given)}`")
    lines.append(f"- **What this scale cannot show:** {_joined(scale.limits)}")
    devices = sorted({record["device"] for record in records})
    lines.append(f"- **Machine:** {'; '.join(devices) or 'nothing measured yet'}; {os.cpu_count()} cores, {_memory()}")
    found = records[-1]["versions"] if records else versions()
    lines.append(f"- **Versions:** {', '.join(f'{name} {version}' for name, version in found.items())}")
    progress = results.progress
    spent = f"{rough_duration(progress.processor_seconds)} of processor time, which is shared out among the cores"
    lines.append(f"- **Time:** {rough_duration(progress.seconds)} in all; {spent}")
    counts = sorted({record["num_images"] for record in records if record["num_images"]})
    references = {_reference(record) for record in records if record.get("reference")}
    if counts:
        lines.append(
            f"- **Images:** {' or '.join(f'{n:,}' for n in counts)} drawn for each measurement, compared with"
            f" {' or '.join(sorted(references))}"
        )
    if networks := {json.dumps(r["extractor"], sort_keys=True) for r in records if r.get("extractor")}:
        lines += [f"- **Extractor:** {_extractor(json.loads(network))}" for network in sorted(networks)]
    if warnings := sorted({warning for record in records for warning in record["warnings"]}):
        lines += ["- **Warnings:**", *(f"  - {warning}" for warning in warnings)]
    problems = {name: results.of(name).problem for name in (*plan.variants, *plan.file.ways)}
    if said := [f"  - {plan.file.label(n)} (`{n}`): {problem}" for n, problem in problems.items() if problem]:
        lines += ["- **Not there:**", *said]
    return lines


def _reference(record: dict[str, Any]) -> str:
    about = record["reference"]
    number = "" if about["num_images"] is None else f"{about['num_images']:,} images of "
    part = f", {about['part']}" if about.get("part") else f", {about['split']}" if about.get("split") else ""
    return f"{number}`{about['source']}`{part}"


def _extractor(identity: dict[str, Any]) -> str:
    text = f"{identity['name']}, {identity.get('weights')}, {identity.get('dimensions')} dimensions"
    if (accuracy := identity.get("accuracy")) is not None:
        of = f"{identity['accuracy_images']:,} " if "accuracy_images" in identity else ""
        text += f"; right on {accuracy:.1%} of the {of}real images that it was not trained on"
    if identity["name"] != "inception":
        text += ". Distances by it are no FID: only values of the same extractor can be compared"
    return text


def _table(table: Table, results: Results) -> list[str]:
    source = f" (the report's {table.source})" if table.source else ""
    parts = [f"## {table.title}{source}", "", tables.markdown(table, results), ""]
    if table.note:
        parts += [_joined(table.note), ""]
    if any(line.reported for line in tables.lines(table, results)):
        parts += ["*In italics: the report's own figures.*", ""]
    quality = results.plan.scale.quality
    if "epochs_to_quality" in table.columns and quality is not None:
        of = results.header(quality.by).rstrip(" ↑↓")
        parts += [f"Quality: {of} of at most {quality.at_most:g}, at the evaluations during training.", ""]
    if table.claims:
        parts += [f"- **{verdict.finding}.** {verdict.text}" for verdict in verdicts(table, results)]
        parts += ["", f"*{_rule(table, results)}*", ""]
    if limits := table.limits.get(results.plan.scale_name):
        parts += [f"**What this scale cannot show:** {_joined(limits)}", ""]
    return parts


def _rule(table: Table, results: Results) -> str:
    """How claims are judged."""
    by = {claim.by for claim in table.claims if claim.alike is None}
    told = ["within two standard errors"] if by & {"kernel", *SHARES} else []
    told += [f"within {results.plan.scale.tie:.0%}"] if by - SHARES else []
    apart = f"Values {' or '.join(told)} of each other are not told apart. " if told else ""
    return f"{apart}Each model was trained once: how much another seed would change is not measured."


def verdicts(table: Table, results: Results) -> list[Verdict]:
    return [judge(claim, table, results) for claim in table.claims]


def as_json(results: Results) -> dict[str, Any]:
    plan = results.plan

    def of(name: str) -> dict[str, Any]:
        outcome = results.of(name)
        found = {"label": plan.file.label(name), "values": _by_key(outcome.values, results), "problem": outcome.problem}
        return found | {"spreads": _by_key(outcome.spreads, results)}

    return {
        "study": plan.file.name,
        "scale": plan.scale_name,
        "seconds": results.progress.seconds,
        "command": _command(plan),
        "variants": {name: of(name) for name in plan.variants},
        "measurements": {
            name: {"variant": way.variant, **of(name)}
            for name, way in plan.file.ways.items()
            if way.variant in plan.variants
        },
        "claims": [
            {"table": table.title, "claim": claim.text, "finding": verdict.finding, "numbers": verdict.text}
            for table in plan.file.study.tables
            for claim, verdict in zip(table.claims, verdicts(table, results), strict=True)
        ],
    }


def as_csv(results: Results) -> str:
    """A line a measurement, a column a value."""
    plan = results.plan
    outcomes = {name: results.of(name) for name, way in plan.file.ways.items() if way.variant in plan.variants}
    columns = [column for column in COLUMNS if any(column in o.values for o in outcomes.values())]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["measurement", "variant", *(results.key(column) for column in columns), "problem"])
    for name, outcome in outcomes.items():
        values = [outcome.values.get(column, "") for column in columns]
        writer.writerow([name, plan.file.ways[name].variant, *values, outcome.problem or ""])
    return text.getvalue()


def _by_key(values: dict[str, float], results: Results) -> dict[str, float]:
    return {results.key(column): value for column, value in values.items()}


def _command(plan: Plan) -> str:
    named = plan.file.name if plan.file.is_shipped else str(plan.file.path)
    return shown(["study", named, "--scale", plan.scale_name, *_given(plan)], "ddpm-hf")


def _given(plan: Plan) -> list[str]:
    """What the command line said otherwise than the study's file."""
    return [part for key, value in {**plan.evaluation, **plan.settings}.items() for part in (f"--{key}", str(value))]


def _joined(text: str) -> str:
    return " ".join(text.split())


def _memory() -> str:
    import psutil

    return f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory, {platform.system()}"
