"""Figure 1b of the paper: two channels with a massive outlier before and after a plane rotation, on a 4-bit grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sq.analysis.figures.look import BLUE, MINUS, SINGLE, VERMILLION, blank, styled
from sq.analysis.figures.stages import read_activations

LEVELS = 7  # symmetric 4-bit codes are -7 to 7


@styled
def figure_givens(frame: pd.DataFrame, *, overrides: Sequence[str] = ()) -> Figure:
    """The two channels of ART's first step, one dot a token, with the cells of a symmetric 4-bit grid that are used.

    The grid is the one these dots alone would get: 15 x 15 cells of width max|x| / 7.

    Args:
        frame: of `sq.analysis.load`.
        overrides: that the experiment was run with, such as "model=llama2_7b".

    Raises:
        MissingRuns: the activations are not there; the command makes them.
    """
    kept = read_activations(frame, "figure_givens", overrides)
    figure = blank(SINGLE, 1.95)
    angle = (np.degrees(kept.givens_angle) + 180) % 360 - 180
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    first, second = (int(channel) for channel in kept.givens_channels)
    for axes, points, name in zip(panels, (kept.givens_before, kept.givens_after), ("before", "after"), strict=True):
        _panel(axes, points.astype(float), name)
        axes.set_xlabel(f"channel {first}" if name == "before" else f"turned by {angle:.1f}°".replace("-", MINUS))
    panels[0].set_ylabel(f"channel {second}")
    limit = 1.12 * float(np.abs(np.r_[kept.givens_before, kept.givens_after]).max())
    panels[0].set_xlim(-limit, limit)
    panels[0].set_ylim(-limit, limit)
    return figure


def used_cells(points: np.ndarray) -> np.ndarray:
    """Cells of the grid with a point in them, (15, 15) bool by (first, second) code + 7. points (T, 2)."""
    peak = np.abs(points).max()
    codes = np.rint(points / (peak / LEVELS if peak else 1.0)).astype(int) + LEVELS
    used = np.zeros((2 * LEVELS + 1, 2 * LEVELS + 1), dtype=bool)
    used[codes[:, 0], codes[:, 1]] = True
    return used


def _panel(axes: Axes, points: np.ndarray, name: str) -> None:
    step = np.abs(points).max() / LEVELS
    edges = (np.arange(2 * LEVELS + 2) - LEVELS - 0.5) * step
    used = used_cells(points)
    axes.pcolormesh(edges, edges, np.where(used.T, 1.0, np.nan), cmap="Blues", vmin=0, vmax=4, lw=0)
    axes.vlines(edges, edges[0], edges[-1], color="#CCCCCC", lw=0.3)
    axes.hlines(edges, edges[0], edges[-1], color="#CCCCCC", lw=0.3)
    largest = np.abs(points).max(1).argmax()
    axes.plot(*points.T, ".", color=BLUE, ms=2.2, mew=0)
    axes.plot(*points[largest], "o", color=VERMILLION, ms=4, mfc="none", mew=0.9)
    axes.set_aspect("equal")
    axes.set_title(f"{name}: {used.sum()} of {used.size} cells ({used.mean():.0%})", fontsize=7)
