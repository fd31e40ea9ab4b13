"""Labels beside points, each where it covers neither a point nor another label."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

Place = tuple[float, float, Literal["left", "center", "right"], Literal["bottom", "center", "top"]]
GAPS = (4.0, 8.0, 13.0, 19.0, 27.0, 36.0)  # points between a point and its label; the nearest that is free is taken
# (x, y) of the direction and how the text is aligned there, the best places first.
PLACES: tuple[Place, ...] = (
    (1.0, 0.0, "left", "center"), (-1.0, 0.0, "right", "center"), (0.0, 1.0, "center", "bottom"),
    (0.0, -1.0, "center", "top"), (0.7, 0.7, "left", "bottom"), (0.7, -0.7, "left", "top"),
    (-0.7, 0.7, "right", "bottom"), (-0.7, -0.7, "right", "top"),
)  # fmt: skip
ALONG = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}  # share of the text's width or height
BEHIND = {"fc": "white", "ec": "none", "pad": 0.4, "alpha": 0.85}  # keeps lines out of the text


def place_labels(
    axes: Axes, x: Sequence[float], y: Sequence[float], labels: Sequence[str], colours: Sequence[str], **text: Any
) -> None:
    """Write a label beside each point of data coordinates, moved off points, other labels and the axes' edges.

    Axes must have their final limits. A label further than the nearest gap gets a thin line to its point.
    """
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # the layout decides where points lie on paper
    points = axes.transData.transform(np.column_stack([x, y]))
    scale = figure.dpi / 72
    radius = 3.0 * scale
    taken = [Bbox.from_extents(px - radius, py - radius, px + radius, py + radius) for px, py in points]
    inside = axes.get_window_extent()
    # Crowded points choose first: they have the fewest free places.
    crowd = [np.sort(np.hypot(*(points - point).T))[1:4].sum() for point in points]
    for i in np.argsort(crowd):
        size = _size(axes, labels[i], canvas, **text)
        others = [box for j, box in enumerate(taken) if j != i]
        tried = [(gap, place, _box(points[i], gap * scale, place, size)) for gap, place in product(GAPS, PLACES)]
        free = np.argmin([_cost(box, others, inside) for _, _, box in tried])  # the first of equals
        gap, (dx, dy, horizontal, vertical), box = tried[free]
        end = (ALONG[horizontal], ALONG[vertical])  # the corner of the text that is nearest to its point
        line = {"arrowstyle": "-", "lw": 0.4, "color": "#999999", "shrinkA": 0, "shrinkB": 2.5, "relpos": end}
        axes.annotate(
            labels[i], (x[i], y[i]), (dx * gap, dy * gap), textcoords="offset points", ha=horizontal, va=vertical,
            color=colours[i], arrowprops=line if gap > GAPS[1] else None, bbox=BEHIND, **text,
        )  # fmt: skip
        taken.append(box)


def _size(axes: Axes, label: str, canvas: FigureCanvasAgg, **text: Any) -> tuple[float, float]:
    """Width and height of a label in pixels."""
    note = axes.text(0, 0, label, **text)
    box = note.get_window_extent(canvas.get_renderer())
    note.remove()
    return box.width, box.height


def _box(point: np.ndarray, gap: float, place: Place, size: tuple[float, float]) -> Bbox:
    """Where a label of a size lies, in pixels."""
    dx, dy, horizontal, vertical = place
    width, height = size
    left = point[0] + gap * dx - width * ALONG[horizontal]
    bottom = point[1] + gap * dy - height * ALONG[vertical]
    return Bbox.from_bounds(left, bottom, width, height)


def _cost(box: Bbox, others: Sequence[Bbox], inside: Bbox) -> float:
    """How much of a label covers others or lies outside the axes; 0 for none."""
    outside = box.width * box.height - _overlap(box, inside)
    return max(0.0, sum(_overlap(box, other) for other in others) + 4 * outside)


def _overlap(first: Bbox, second: Bbox) -> float:
    both = Bbox.intersection(first, second)
    return 0.0 if both is None else both.width * both.height
