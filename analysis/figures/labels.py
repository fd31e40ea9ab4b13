"""Labels beside points, moved apart by adjustText."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

# Steps are counted, not timed, so that a figure is the same on every machine; forces are in adjustText's units.
MOVES: dict[str, Any] = {
    "iter_lim": 400, "expand": (1.12, 1.35), "force_text": (0.2, 0.3), "force_static": (0.3, 0.5),
    "force_pull": (0.005, 0.005), "force_explode": (0.3, 0.8), "min_arrow_len": 8,
}  # fmt: skip
BEHIND = {"fc": "white", "ec": "none", "pad": 0.3, "alpha": 0.8}  # keeps lines out of the text
LINE = {"arrowstyle": "-", "lw": 0.4, "color": "#999999", "shrinkA": 0, "shrinkB": 2}


def place_labels(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    labels: Sequence[str],
    colours: Sequence[str],
    *,
    avoid: Sequence[Sequence[float]] = ((), ()),
    **text: Any,
) -> None:
    """Write a label beside each point of data coordinates, moved off points, other labels and the axes' edges.

    Axes must have their final limits. A label far from its point gets a thin line to it. `avoid`: x and y of further
    points that labels must not cover.
    """
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    FigureCanvasAgg(figure)  # texts are measured with a renderer
    figure.draw_without_rendering()  # the layout decides where points lie on paper
    look = {"bbox": BEHIND, "zorder": 2.5, **text}
    parts = zip(x, y, labels, colours, strict=True)
    notes = [axes.text(left, above, label, color=colour, **look) for left, above, label, colour in parts]
    state = np.random.get_state()  # adjustText draws from it where two texts are at one place
    np.random.seed(0)
    around = {"x": np.r_[x, avoid[0]].astype(float), "y": np.r_[y, avoid[1]].astype(float)}
    adjust_text(notes, **around, ax=axes, arrowprops=LINE, **MOVES)
    np.random.set_state(state)
