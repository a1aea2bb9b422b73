"""Names beside what they name, so that no legend has to be looked up."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox


@dataclass(frozen=True)
class EndLabel:
    """The name of a line that ends at `end`, in data coordinates, and how that line looks; x is NaN where it never ends."""

    text: str
    end: tuple[float, float]
    colour: str
    text_colour: str
    marker: str | None = None
    linestyle: str | tuple = "-"


class LabelColumn:
    """Names right of the axes, each as near to the height of its line's end as the others leave room.

    Beside each is a piece of its line, so that the column is read as a legend too where lines end early.
    """

    def __init__(self, figure: Figure, labels: Sequence[EndLabel]) -> None:
        self.figure, self.labels = figure, [label for label in labels if label.text]
        self.texts = [
            figure.text(0, 0, textwrap.fill(label.text, 24), color=label.text_colour, va="center", linespacing=1.05)
            for label in self.labels
        ]
        boxes = [text.get_window_extent() for text in self.texts]
        self.swatch, self.gap = 0.28 * figure.dpi, 0.07 * figure.dpi
        self.heights = [box.height + self.gap for box in boxes]
        widest = max((box.width for box in boxes), default=0)
        self.width = (widest + self.swatch + 3 * self.gap) / figure.dpi if boxes else 0.0  # inches
        self.height = sum(self.heights) / figure.dpi  # inches

    def place(self, axes: Axes) -> None:
        """After the layout is settled."""
        if not self.labels:
            return
        area = axes.get_window_extent()
        left, right = area.x1 + 2 * self.gap, area.x1 + 2 * self.gap + self.swatch
        edge = axes.get_xlim()[1]
        ends = axes.transData.transform([(edge if np.isnan(x) else x, y) for x, y in (one.end for one in self.labels)])
        middles = spread(ends[:, 1], self.heights, area.y0, area.y1)
        for label, text, (x, y), middle in zip(self.labels, self.texts, ends, middles, strict=True):
            text.set_position(self.figure.transFigure.inverted().transform((right + self.gap, middle)))
            self._line([left, right], [middle, middle], color=label.colour, linestyle=label.linestyle)
            if label.marker is not None:
                self._line([(left + right) / 2], [middle], color=label.colour, marker=label.marker)
            if x > area.x1 - 0.05 * area.width:  # it ends here: led to its name
                self._line([x, left], [y, middle], color=label.colour, linewidth=0.7, linestyle=(0, (1, 1)))

    def _line(self, x: Sequence[float], y: Sequence[float], **look: object) -> None:
        self.figure.add_artist(Line2D(x, y, transform=None, **look))


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> np.ndarray:
    """Middles of boxes of these heights, none on another, nearest to those wanted; within [low, high] if all fit.

    Least squares under an order: isotonic regression of what is left once the boxes below are taken off.
    """
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(wanted, kind="stable")
    sizes = np.asarray(heights, dtype=float)[order]
    offsets = np.cumsum(sizes) - sizes / 2
    highest = max(high - sizes.sum(), low)
    places = isotonic_regression(np.asarray(wanted, dtype=float)[order] - offsets, y_min=low, y_max=highest)
    middles = np.empty(len(order))
    middles[order] = places + offsets
    return middles


@dataclass(frozen=True)
class PointLabel:
    text: str
    point: tuple[float, float]  # data coordinates
    colour: str


_AROUND = [(0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0)]


def place_point_labels(axes: Axes, labels: Sequence[PointLabel]) -> None:
    """Writes each beside its point, over as little of the lines as can be; not where it would be on another.

    After the layout is settled.
    """
    area, drawn = axes.get_window_extent(), _along_lines(axes)
    taken: list[Bbox] = []
    points = axes.transData.transform([label.point for label in labels]) if labels else np.empty((0, 2))
    for i, label in enumerate(labels):
        text = axes.annotate(label.text, label.point, (0, 0), "data", "offset points", color=label.colour, fontsize=9)
        choices = []
        for place in _AROUND:
            _move(text, place)
            box = text.get_window_extent()
            inside = area.x0 <= box.x0 and area.y0 <= box.y0 and box.x1 <= area.x1 and box.y1 <= area.y1
            if inside and not any(box.overlaps(other) for other in taken):
                near = box.padded(2)
                hidden = ((drawn >= near.min) & (drawn <= near.max)).all(axis=1).sum()
                distances = np.linalg.norm(points - (box.min + box.max) / 2, axis=1)
                strangers = (distances < distances[i]).sum()  # points that are nearer than its own
                choices.append((hidden + 20 * strangers, len(choices), place))
        if not choices:
            text.remove()
            continue
        _move(text, min(choices)[-1])
        taken.append(text.get_window_extent())


def _move(text, place: tuple[int, int]) -> None:
    dx, dy = place
    distance = 4 if dx and dy else 7
    text.set(
        position=(distance * dx, distance * dy),
        ha={1: "left", 0: "center", -1: "right"}[dx],
        va={1: "bottom", 0: "center_baseline", -1: "top"}[dy],
    )


def _along_lines(axes: Axes) -> np.ndarray:
    """(N, 2) in pixels, densely along the lines of the axes and around their markers."""
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    points = [np.empty((0, 2))]
    for line in axes.lines:
        ends = line.get_transform().transform(line.get_xydata())
        ends = ends[np.isfinite(ends).all(axis=1)]
        radius = line.get_markersize() / 2 * axes.figure.dpi / 72
        points += [end + radius * around for end in ends]
        points += [np.linspace(a, b, 60) for a, b in pairwise(ends)]
    return np.concatenate(points)
