"""Figure 1b of the paper: two channels with a massive outlier before and after a plane rotation, on a 4-bit grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sq.analysis.figures.look import BLUE, MINUS, SINGLE, VERMILLION, blank, styled, tips
from sq.analysis.figures.select import read_activations

LEVELS = 7  # symmetric 4-bit codes are -7 to 7


@styled
def figure_givens(frame: pd.DataFrame, *, overrides: Sequence[str] = ()) -> Figure:
    """The two channels of ART's first step, one dot a token, with the cells of a symmetric 4-bit grid that are used.

    The grid is the one these dots alone would get: 15 x 15 cells of width max|x| / 7.
    """
    _, kept = read_activations(frame, "figure_givens", overrides)
    before, after = kept["givens_before"].astype(float), kept["givens_after"].astype(float)
    angle = (np.degrees(float(kept["givens_angle"])) + 180) % 360 - 180
    first, second = (int(channel) for channel in kept["givens_channels"])
    limit = 1.12 * float(np.abs(np.r_[before, after]).max())
    figure = blank(SINGLE, 1.95)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    names = {"before": f"channel {first}", "after": f"turned by {angle:.1f}°".replace("-", MINUS)}
    for axes, points, (name, label) in zip(panels, (before, after), names.items(), strict=True):
        step = np.abs(points).max() / LEVELS
        edges = (np.arange(2 * LEVELS + 2) - LEVELS - 0.5) * step
        used = used_cells(points)
        axes.pcolormesh(edges, edges, np.where(used.T, 1.0, np.nan), cmap="Blues", vmin=0, vmax=4, lw=0)
        for lines in (axes.vlines, axes.hlines):
            lines(edges, edges[0], edges[-1], color="#CCCCCC", lw=0.3)
        axes.plot(*points.T, ".", color=BLUE, ms=2.2, mew=0)
        largest = points[np.abs(points).max(1).argmax()]
        axes.plot(*largest, "o", color=VERMILLION, ms=4, mfc="none", mew=0.9)
        tips(axes, largest[:1], largest[1:], [f"largest entry: ({largest[0]:.2f}, {largest[1]:.2f})"])
        axes.set_title(f"{name}: {used.sum()} of {used.size} cells ({used.mean():.0%})", fontsize=7)
        axes.set(aspect="equal", xlabel=label)
    panels[0].set(ylabel=f"channel {second}", xlim=(-limit, limit), ylim=(-limit, limit))
    return figure


def used_cells(points: np.ndarray) -> np.ndarray:
    """Cells of the grid with a point in them, (15, 15) bool by (first, second) code + 7. points (T, 2)."""
    peak = np.abs(points).max()
    codes = np.rint(points / (peak / LEVELS if peak else 1.0)).astype(int) + LEVELS
    used = np.zeros((2 * LEVELS + 1, 2 * LEVELS + 1), dtype=bool)
    used[codes[:, 0], codes[:, 1]] = True
    return used
