"""Plots of training and of evaluation: `picture` makes one what a tracker takes, `save` writes a PNG.

Values that are not finite, or not positive on a logarithmic axis, leave a gap in their line and a note below the axes: a
run that diverged is seen as one. `UserError` where nothing is left to draw.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.plot_labels import EndLabel, LabelColumn, PointLabel, place_point_labels
from ddpm_hf.evaluation.plot_style import (
    CARD,
    DASHES,
    DOTS,
    INK,
    SOFT,
    card,
    house_style,
    look,
    settle,
    use_ticks,
)

SIZE = (7.0, 4.2)  # inches: 700 pixels wide where it is shown
_FEW = 25  # up to so many points of a line each have a marker


@dataclass(frozen=True)
class Series:
    """`y` (N,) at `x` (N,). Series of one label share a colour, which `place` keeps over figures that do not hold the same.

    dashed: of two series of one label the second, such as the loss of held-out images
    error: (N,) standard errors of `y`; None where a point has none
    points: N names of the points, such as guidance scales; `trade_off` writes them
    """

    label: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    dashed: bool = False
    error: Sequence[float | None] | None = None
    points: Sequence[str] | None = None
    place: int | None = None


def curves(
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    title: str = "",
    *,
    log_x: bool = False,
    log_y: bool = False,
    smooth: int = 1,
    solid: str = "training",
    dashed: str = "validation",
    levels: Mapping[str, float] | None = None,
    size: tuple[float, float] = SIZE,
) -> Figure:
    """Learning curves, each named where it ends.

    smooth: solid lines are the mean of so many points around each, with the points themselves faint behind; 1 is off
    solid, dashed: what the two kinds of line are, said above the axes where both are drawn
    levels: horizontal lines to compare with, by name
    """
    with house_style():
        plot = _Plot(series, xlabel, ylabel, title, log_x, log_y, size, kinds=(solid, dashed))
        for one in plot.series:
            plot.line(one, 1 if one.dashed else smooth)
        plot.finish(levels or {})
    return plot.figure


def trade_off(
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    title: str = "",
    *,
    log_x: bool = True,
    log_y: bool = False,
    levels: Mapping[str, float] | None = None,
    size: tuple[float, float] = SIZE,
) -> Figure:
    """Quality against what it costs (network evaluations, seconds) or another quality: a line a sampler, a marker a point.

    Points are joined in the order given. On a logarithmic axis the ticks are at the points themselves where these are few.
    """
    with house_style():
        plot = _Plot(series, xlabel, ylabel, title, log_x, log_y, size)
        for one in plot.series:
            plot.line(one, markers=True)
        plot.finish(levels or {}, ticks_at_points=True)
        labels = [
            PointLabel(text, (x, y), plot.looks[one.label].text)
            for one in plot.series
            if one.points is not None
            for text, x, y in zip(one.points, one.x, one.y, strict=True)
            if np.isfinite(y)
        ]
        place_point_labels(plot.axes, labels)
    return plot.figure


def dots(
    values: Mapping[str, float | None],
    xlabel: str,
    title: str = "",
    *,
    errors: Mapping[str, float] | None = None,
    log_x: bool = False,
    width: float = SIZE[0],
) -> Figure:
    """One value a variant, from the top down, with its standard error where there is one."""
    usable = {name: value is not None and _drawable(np.array([value]), log_x)[0] for name, value in values.items()}
    if not any(usable.values()):
        raise UserError(f"{title or xlabel}: nothing to plot, no variant has a {_wanted(log_x)} value")
    names = [textwrap.fill(name, 28) for name in values]
    lines = sum(name.count("\n") + 1 for name in names) + len(names) * 0.6
    with house_style():
        figure, axes = card(width, 1.0 + 0.18 * lines)
        axes.set(xscale="log" if log_x else "linear", xlabel=xlabel, ylim=(len(names) - 0.5, -0.7))
        axes.set_yticks(range(len(names)), names, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12)
        for row, (name, value) in enumerate(values.items()):
            if not usable[name]:
                axes.annotate(
                    f"no {_wanted(log_x)} value",
                    (0.02, row),
                    xycoords=("axes fraction", "data"),
                    va="center_baseline",
                    color=SOFT,
                    backgroundcolor=CARD,
                )
                continue
            style = look(row)
            error = (errors or {}).get(name)
            axes.errorbar(
                value, row, xerr=error, fmt=style.marker, color=style.colour, markersize=7, capsize=3, elinewidth=1.4
            )
            axes.annotate(
                f"{value:.4g}",
                (value, row),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=9,
                color=style.text,
            )
        use_ticks(axes.xaxis, log_x)
        settle(figure, title)
    return figure


def picture(figure: Figure) -> Image.Image:
    """RGB, twice as many pixels as it is meant to be shown with."""
    with house_style():
        figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())


def save(figure: Figure | Image.Image, path: str | Path) -> None:
    """Writes a PNG, folders above it included: the same bytes for the same picture, with no date and no version."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = picture(figure) if isinstance(figure, Figure) else figure
    image.save(path, format="PNG", optimize=True)


def running_mean(values: np.ndarray, points: int) -> np.ndarray:
    """(N,) the mean of the finite among `points` values around each; what is not finite stays so.

    Fewer at the ends. At the start, where losses fall fast, as many before as after: the mean begins with the first value.
    """
    half = min(points // 2, max(len(values) - 1, 0) // 2)
    if half == 0:
        return values
    finite = np.isfinite(values)
    total, count = (
        np.convolve(counted, np.ones(2 * half + 1), "same") for counted in (np.where(finite, values, 0), finite)
    )
    for i in range(half):
        total[i], count[i] = values[: 2 * i + 1][finite[: 2 * i + 1]].sum(), finite[: 2 * i + 1].sum()
    return np.where(finite, total / np.maximum(count, 1), np.nan)


class _Plot:
    """A plot of lines while it is made."""

    def __init__(
        self,
        series: Sequence[Series],
        xlabel: str,
        ylabel: str,
        title: str,
        log_x: bool,
        log_y: bool,
        size: tuple[float, float],
        kinds: tuple[str, str] = ("", ""),
    ) -> None:
        self.log_x, self.log_y, self.kinds = log_x, log_y, kinds
        self.notes: list[str] = []
        labels = {one.label: one.place for one in reversed(series)}  # the first of a label says its place
        order = dict.fromkeys(one.label for one in series)
        self.looks = {label: look(i if labels[label] is None else labels[label]) for i, label in enumerate(order)}
        self.series = [kept for one in series if (kept := self._checked(one)) is not None]
        if not self.series:
            wanted = f"none of {len(series)} series has a {_wanted(log_y)} value"
            raise UserError(f"{title or ylabel}: nothing to plot, {wanted}")
        self.title = title
        self.figure, self.axes = card(*size)
        self.axes.set(
            xlabel=xlabel,
            ylabel=ylabel,
            xscale="log" if log_x else "linear",
            yscale="log" if log_y else "linear",
        )
        self.ends: dict[str, EndLabel] = {}

    def _checked(self, one: Series) -> Series | None:
        """As float64 arrays, NaN where a point cannot be drawn, with a note; None where no point can."""
        x, y = np.asarray(one.x, dtype=float), np.asarray(one.y, dtype=float)
        for name, other in (("y", y), ("error", one.error), ("points", one.points)):
            if other is not None and len(other) != len(x):
                raise ValueError(f"series {one.label!r}: {len(x)} x, but {len(other)} {name}")
        drawable = _drawable(x, self.log_x) & _drawable(y, self.log_y)
        name = f"{one.label} ({self.kinds[1]})" if one.dashed and self.kinds[1] else one.label
        if not drawable.all() or not len(x):
            finite = np.isfinite(x) & np.isfinite(y)
            why = "not finite" if (drawable == finite).all() else "not positive and finite"
            why = "not positive" if finite.all() else why
            missing = f"{(~drawable).sum():,} of {len(x):,} points left out, {why}" if len(x) else "no points"
            self.notes.append(f"{name}: {missing}")
        if not drawable.any():
            return None
        error = None if one.error is None else np.asarray(one.error, dtype=float)
        return replace(one, x=x, y=np.where(drawable, y, np.nan), error=error)

    def line(self, one: Series, smooth: int = 1, *, markers: bool = False) -> None:
        style, y = self.looks[one.label], np.asarray(one.y)
        if smooth > 1:
            self.axes.plot(one.x, y, color=style.colour, alpha=0.25, linewidth=0.9, zorder=1.8)
            y = running_mean(y, smooth)
        finite = np.flatnonzero(np.isfinite(y))
        if markers or len(finite) <= _FEW:
            marked = finite
        else:  # five, elsewhere on each line
            fifth = len(finite) // 5
            marked = finite[len(self.axes.lines) * 7 % 11 * fifth // 11 :: fifth][:5]
        self.axes.errorbar(
            one.x,
            y,
            yerr=one.error,
            color=style.colour,
            linestyle=DASHES if one.dashed else "-",
            marker=style.marker,
            markevery=marked.tolist(),
            markerfacecolor=CARD if one.dashed else style.colour,
            markersize=5.5 if markers or len(finite) <= _FEW // 2 else 4.5,
            capsize=2.5,
            elinewidth=1.1,
            linewidth=0.9 if smooth <= 1 and len(finite) > 200 else 1.8,  # noise, which would hide the others
            zorder=2.2 if one.dashed else 2,
        )
        end = float(one.x[finite[-1]]), float(y[finite[-1]])
        self.ends.setdefault(one.label, EndLabel(one.label, end, style.colour, style.text, style.marker))

    def finish(self, levels: Mapping[str, float], *, ticks_at_points: bool = False) -> None:
        """Levels, ticks, notes, layout, and then the names, which are placed by pixels."""
        for label, value in levels.items():
            if not _drawable(np.array([value]), self.log_y)[0]:
                self.notes.append(f"{label}: left out, {value:g}")
                continue
            self.axes.axhline(value, color=SOFT, linewidth=1.2, linestyle=DOTS, zorder=1.7)
            self.ends[f"level {label}"] = EndLabel(label, (np.nan, value), SOFT, SOFT, linestyle=DOTS)
        self.axes.margins(x=0.03, y=0.07)
        points = np.concatenate([np.asarray(one.x)[np.isfinite(one.y)] for one in self.series])
        use_ticks(self.axes.xaxis, self.log_x, points if ticks_at_points else None)
        use_ticks(self.axes.yaxis, self.log_y)
        column = LabelColumn(self.figure, list(self.ends.values()))
        self.figure.set_figheight(max(self.figure.get_figheight(), column.height + 1.4))  # room for all names
        kinds = self.kinds if len({one.dashed for one in self.series}) == 2 else ()
        settle(self.figure, self.title, kinds, self.notes, column.width)
        column.place(self.axes)


def _drawable(values: np.ndarray, log: bool) -> np.ndarray:
    return np.isfinite(values) & (values > 0) if log else np.isfinite(values)


def _wanted(log: bool) -> str:
    return "positive, finite" if log else "finite"
