"""A study's figures, as PNG files in figures/ and Markdown that shows them."""

import itertools
import re
import shutil
import unicodedata
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation import plots
from ddpm_hf.evaluation.pages import rows_page
from ddpm_hf.studies.columns import COLUMNS
from ddpm_hf.studies.plan import drawn, neighbours_of, strip_of
from ddpm_hf.studies.results import Results
from ddpm_hf.studies.schema import Curves, Evolution, Figure, Neighbours, Samples, Strip, TradeOff

WIDTH = 700  # pixels in the report
_STRIP_DRAWN, _STRIP_COLUMNS, _GAP = 8, 10, 2  # of the picture that `ddpm-hf sample --strip` makes: at most, and pixels
_STRIP_ROWS = 4  # of it that are shown
_WIDE = 600  # pixels of a picture from which on two are beside each other, else three


@dataclass(frozen=True)
class Shown:
    """A PNG file and what stands above it, if anything."""

    file: Path
    head: str | None = None


def markdown(figure: Figure, number: int, results: Results) -> str:
    """Draws the figure and gives the text that shows it; says why where there is nothing to show."""
    folder = results.plan.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    plain = unicodedata.normalize("NFKD", figure.title.lower()).encode("ascii", "ignore").decode()
    stem = folder / f"{number:02d}-{re.sub(r'[^a-z0-9]+', '-', plain).strip('-')[:50]}"
    source = f" (the report's {figure.source})" if figure.source else ""
    lines = [f"### {figure.title}{source}", ""]
    for old in folder.glob(f"{number:02d}-*"):
        old.unlink()
    try:
        shown = _DRAW[figure.kind](figure, stem, results)
    except UserError as error:
        return "\n".join([*lines, f"*Not drawn: {error}.*", ""])
    if not shown:
        return "\n".join([*lines, "*Not drawn: there is nothing to show yet.*", ""])
    lines += _table(shown, figure.title, results.plan.out)
    return "\n".join([*lines, "", *([figure.caption, ""] if figure.caption else [])])


def _table(shown: list[Shown], title: str, out: Path) -> list[str]:
    def image(one: Shown, width: int) -> str:
        about = title if one.head is None else f"{title}: {one.head}"
        place = one.file.relative_to(out).as_posix()
        return f'<img src="{place}" alt="{escape(about)}" width="{width}">'

    if len(shown) == 1 and shown[0].head is None:
        return [image(shown[0], WIDTH)]
    widest = max(Image.open(one.file).width for one in shown)
    across = min(2 if widest > _WIDE else 3, len(shown))
    rows = [shown[i : i + across] for i in range(0, len(shown), across)]
    lines = []
    for i, row in enumerate(rows):
        row = row + [None] * (across - len(row))
        heads = " | ".join(one.head or "" if one else "" for one in row)
        images = " | ".join(image(one, WIDTH // across) if one else "" for one in row)
        # a table has one line of heads: further ones are cells
        lines += [f"| {heads} |", *(["|" + " --- |" * across] if i == 0 else []), f"| {images} |"]
    return lines


def _curves(figure: Curves, stem: Path, results: Results) -> list[Shown]:
    series, unit = [], "epochs"
    for place, variant in enumerate(figure.of):
        for i, column in enumerate(figure.show):
            x, y, unit = results.curve(variant, column)
            if x:
                label = results.plan.file.label(variant)
                series.append(plots.Series(label, x, y, dashed=i > 0, place=place))
    if not series:
        return []
    names = [results.header(column).rstrip(" ↑↓") for column in figure.show]
    quality, levels = results.plan.scale.quality, {}
    if quality is not None and quality.by in figure.show:
        levels = {f"quality: {quality.at_most:g}": quality.at_most}
    many = max(len(one.x) for one in series)
    picture = plots.curves(
        series,
        unit,
        "loss" if {"loss", "validation_loss"} == set(figure.show) else names[0],
        log_y=figure.log_y,
        smooth=max(1, many // 20) if figure.show[0] == "loss" else 1,
        solid=names[0].removesuffix(" loss"),
        dashed=names[-1].removesuffix(" loss"),
        levels=levels,
    )
    return [_save(picture, stem)]


def _trade_off(figure: TradeOff, stem: Path, results: Results) -> list[Shown]:
    series = []
    for place, (label, names) in enumerate(figure.lines.items()):
        members = [member for name in names for member in results.plan.file.members(name)]
        values = [results.of(member) for member in members]
        found = [o for o in values if figure.x in o.values and figure.y in o.values]
        if found:
            points = [f"{o.values[figure.points]:g}" for o in found] if figure.points else None
            errors = [o.spreads.get(figure.y) for o in found] if figure.y == "kernel" else None
            x, y = ([float(f"{o.values[column]:.3g}") for o in found] for column in (figure.x, figure.y))
            series.append(plots.Series(label, x, y, error=errors, points=points, place=place))
    if not series:
        return []
    units = {column: COLUMNS[column].unit for column in (figure.x, figure.y)}
    axes = [results.header(column) + (f" ({unit})" if unit else "") for column, unit in units.items()]
    return [_save(plots.trade_off(series, *axes, log_x=figure.log_x, log_y=figure.log_y), stem)]


def _samples(figure: Samples, stem: Path, results: Results) -> list[Shown]:
    rows = {}
    for name in itertools.chain(*map(results.plan.file.members, figure.of)):
        job = results.plan.jobs.get(f"{name}, pictures")
        if job is not None and results.progress.is_done(job):
            with np.load(drawn(results.plan, name)) as file:
                images = file["images"][: figure.num_images].transpose(0, 3, 1, 2)  # uint8 (N, C, H, W)
            rows[results.plan.file.label(name)] = images
    return [_save(rows_page(rows), stem)] if rows else []


def _strip(figure: Strip, stem: Path, results: Results) -> list[Shown]:
    """Cut out of the picture that `ddpm-hf sample --strip` made, and put together with what each state is."""
    plan, shown = results.plan, []
    for name in plan.file.members(figure.of):
        passes = results.of(name).values.get("network_evaluations")
        if passes is None or not (path := strip_of(plan, name)).is_file():
            continue
        with np.load(drawn(plan, name)) as file:
            number = min(_STRIP_DRAWN, len(file["seeds"]))
        sheet = np.asarray(Image.open(path))
        sheet = sheet[None] if sheet.ndim == 2 else sheet.transpose(2, 0, 1)  # uint8 (C, H, W)
        columns = min(_STRIP_COLUMNS, round(passes) + 1)
        height, width = (sheet.shape[1] - _GAP) // number, (sheet.shape[2] - _GAP) // columns
        cells = sheet[:, _GAP:, _GAP:].reshape(len(sheet), number, height, columns, width)
        rows = cells[:, :_STRIP_ROWS, :-_GAP, :, :-_GAP].transpose(1, 3, 0, 2, 4)  # (rows, columns, C, H, W)
        heads = [f"{step:,.0f}" for step in np.linspace(0, passes, columns).round()]
        page = rows_page({f"seed {i}": row for i, row in enumerate(rows)}, columns=heads)
        shown.append(_save(page, stem))
    return shown


def _neighbours(figure: Neighbours, stem: Path, results: Results) -> list[Shown]:
    shown = []
    for name in results.plan.file.members(figure.of):
        if (path := neighbours_of(results.plan, name)).is_file():
            copy = stem.with_name(f"{stem.name}-{name}.png")
            shutil.copyfile(path, copy)
            shown.append(Shown(copy))
    return shown


def _evolution(figure: Evolution, stem: Path, results: Results) -> list[Shown]:
    training = results.plan.trainings.get(figure.of)
    pages = sorted(training.run.glob("samples/step-*.png")) if training else []
    epoch = results.images_per_epoch(figure.of) if training else None
    seen = {line["step"]: line["images_seen"] for line in results.lines(figure.of)} if training else {}
    if not pages:
        return []
    chosen = np.unique(np.linspace(0, len(pages) - 1, min(figure.pages, len(pages))).round().astype(int))
    shown = []
    for page in (pages[i] for i in chosen):
        step = int(page.stem.removeprefix("step-"))
        head = f"epoch {seen[step] / epoch:.3g}" if epoch and step in seen else f"step {step:,}"
        copy = stem.with_name(f"{stem.name}-{page.name}")
        shutil.copyfile(page, copy)
        shown.append(Shown(copy, head))
    return shown


def _save(figure: object, stem: Path) -> Shown:
    path = stem.with_name(f"{stem.name}.png")
    plots.save(figure, path)
    return Shown(path)


_DRAW = {
    "curves": _curves,
    "trade_off": _trade_off,
    "samples": _samples,
    "strip": _strip,
    "neighbours": _neighbours,
    "evolution": _evolution,
}
