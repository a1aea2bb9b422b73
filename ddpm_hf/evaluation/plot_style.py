"""How plots look: the card, colours, axes.

A plot is an opaque white card. A transparent one would have to be read on white and on GitHub's dark #0d1117 alike, and
no colour reaches the 4.5:1 that WCAG 2.2 (1.4.3) asks of text on both: white allows a luminance of at most 0.183, the dark
page at least 0.200. On its own card a plot reads the same wherever it is shown.

Sizes are for a card shown 700 pixels wide; it is drawn with twice as many.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from ddpm_hf.pictures import INK

CARD, SOFT, RULE, GRID = "#ffffff", "#57606a", "#8c959f", "#e6e9ec"
# After Okabe & Ito (2008), darkened to 3:1 on the card and moved apart for protan, deutan and tritan eyes; in gray the
# markers, one a colour, tell them apart.
PALETTE = ("#025d9b", "#b04000", "#20a069", "#cf5d96", "#c08904", "#181a20", "#7792d2", "#89344b")
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "p")
DASHES, DOTS = (0, (4, 1.8)), (0, (1, 1.5))
SCALE = 2  # pixels drawn for a pixel shown
MARGIN = 0.13  # inches around all

_RC = {
    "figure.dpi": 100 * SCALE,
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # labels are a user's own words
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults and this style, whatever the user's own matplotlibrc says."""
    with matplotlib.style.context(["default", _RC]):
        yield


@dataclass(frozen=True)
class Look:
    """Of a series: its colour, its label's (at least 4.5:1 on the card) and its marker."""

    colour: str
    text: str
    marker: str


def look(place: int) -> Look:
    """Of the series at `place`; 64 differ."""
    round_, colour = divmod(place, len(PALETTE))
    colour = PALETTE[colour]
    text = colour
    while contrast(text, CARD) < 4.5:
        text = "#" + "".join(f"{int(int(text[i : i + 2], 16) * 0.95):02x}" for i in (1, 3, 5))
    return Look(colour, text, MARKERS[(place + round_) % len(MARKERS)])


def contrast(a: str, b: str) -> float:
    """WCAG's contrast ratio of two colours "#rrggbb", from 1 to 21."""

    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    darker, lighter = sorted([luminance(a), luminance(b)])
    return (lighter + 0.05) / (darker + 0.05)


def card(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot of so many inches, a hundred pixels each where it is shown."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def settle(figure: Figure, title: str, kinds: Sequence[str] = (), notes: Sequence[str] = (), right: float = 0) -> None:
    """Adds the title and what solid and dashed lines are above, notes below; lays all out, `right` inches left free.

    The layout stays so: what is placed by pixels afterwards stays true.
    """
    width, height = figure.get_size_inches()
    x, y = MARGIN / width, MARGIN / height
    top = bottom = 0.0  # inches
    pad = 0.05  # around the axes and their labels
    if title:
        title = textwrap.fill(title, round(10 * width))
        text = figure.text(x, 1 - y, title, ha="left", va="top", fontsize=11.5, fontweight="bold")
        top += text.get_window_extent().height / figure.dpi + 0.09
    if kinds:
        lines = [Line2D([], [], color=SOFT, linestyle=style) for style in ("-", DASHES)]
        place = {"loc": "upper left", "bbox_to_anchor": (x, 1 - y - top / height), "ncols": 2}
        plain = {"frameon": False, "borderpad": 0, "borderaxespad": 0, "labelcolor": SOFT, "fontsize": 9.5}
        legend = figure.legend(lines, kinds, **place, **plain)
        legend.set_in_layout(False)
        top += legend.get_window_extent().height / figure.dpi + 0.07
    if notes:
        lines = [textwrap.fill(line, round(15 * width), subsequent_indent="  ") for line in notes]
        text = figure.text(x, y, "\n".join(lines), ha="left", va="bottom", fontsize=9, color=SOFT)
        bottom += text.get_window_extent().height / figure.dpi + 0.09
    left, low, high = MARGIN - pad, MARGIN - pad + bottom, height - MARGIN + pad - top
    rect = (left / width, low / height, (width - 2 * left - right) / width, (high - low) / height)
    figure.set_layout_engine("constrained", rect=rect, w_pad=pad, h_pad=pad)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def use_ticks(axis: Axis, log: bool, values: np.ndarray | None = None) -> None:
    """Plain numbers at round places; on a logarithmic axis at `values`, the measured ones, where these are few."""
    axis.axes.autoscale_view()
    low, high = sorted(axis.get_view_interval())
    thousands = max(abs(low), abs(high)) >= 1e4
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value, thousands and not log)))
    if not log and not thousands:  # as many decimals in all
        axis.set_major_formatter(formatter := ScalarFormatter(useOffset=False))
        formatter.set_scientific(False)
    width = axis.axes.figure.get_figwidth()
    round_places = MaxNLocator(
        nbins=int(np.clip(width, 3, 6)) if axis.axis_name == "x" else 6, steps=[1, 2, 2.5, 5, 10]
    )
    if log and values is not None and len(distinct := np.unique(values)) <= 16:
        axis.set_major_locator(FixedLocator(_apart(distinct, np.log10(high / low) / (1.7 * width))))
    elif not log or high / low < 4:
        axis.set_major_locator(round_places)
    else:
        subs = (1, 2, 3, 5, 7) if high / low < 15 else (1, 2, 5) if high / low < 500 else (1,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))


def _plain(value: float, thousands: bool) -> str:
    """10k, 2.5M; with `thousands`, smaller ones as 5k too."""
    if 1e6 <= abs(value) < 1e9:
        return f"{value / 1e6:g}M"
    if value != 0 and (thousands or 1e4 <= abs(value) < 1e6):
        return f"{value / 1e3:g}k"
    return f"{value:g}"


def _apart(values: np.ndarray, decades: float) -> list[float]:
    """Of the sorted values those that leave room for each other's text; the first and the last come first."""
    kept = [values[0]] if len(values) else []
    for value in [values[-1], *values[1:-1]]:
        if all(abs(np.log10(value / other)) >= decades for other in kept):
            kept.append(value)
    return sorted(kept)
