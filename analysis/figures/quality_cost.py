"""Quality against what it costs: multiply-adds at run time, and seconds of quantizing; the front of the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from sq.analysis.figures.look import DOUBLE, blank, styled
from sq.analysis.figures.points import Quality, method_points
from sq.analysis.figures.tradeoff import draw_points, kinds, quality_axis

LINEAR = 1e5  # multiply-adds below which the axis is linear, so that zero has a place on it


@styled
def figure_quality_cost(frame: pd.DataFrame, *, overrides: Sequence[str] = (), quality: Quality = "kl") -> Figure:
    """Left against online multiply-adds a token (all layers), right against quantization seconds; line: Pareto front.

    Arguments and errors: as of `figure_tradeoff`.
    """
    points = method_points(frame, "figure_quality_cost", overrides, quality=quality)
    figure = blank(DOUBLE, 2.7)
    online, seconds = figure.subplots(1, 2, sharey=True)
    quality_axis(online, points, quality)
    most = float(points["multiply_adds"].max())
    online.set_xscale("symlog", linthresh=LINEAR, linscale=0.6)
    online.set_xlim(-0.4 * LINEAR, max(most, LINEAR) * 3)
    online.xaxis.set_major_formatter(FuncFormatter(_engineering))
    online.set_xlabel("online multiply-adds per token, all layers")
    seconds.set_xscale("log")
    seconds.set_xlim(float(points["seconds"].min()) / 1.8, float(points["seconds"].max()) * 2.5)
    seconds.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    seconds.xaxis.set_minor_formatter(NullFormatter())
    seconds.set_xlabel("quantization time (s)")
    for axes, cost in ((online, "multiply_adds"), (seconds, "seconds")):
        _front(axes, points[cost], points["quality"], rising=quality == "acc")
        draw_points(axes, points[cost], points)
    kinds(online, points)
    return figure


def pareto(cost: np.ndarray, quality: np.ndarray, *, rising: bool) -> np.ndarray:
    """Indices of the points that no other beats in both, by rising cost; `rising`: a higher quality is better."""
    better = -quality if rising else quality
    order = np.lexsort((better, cost))
    best = np.minimum.accumulate(better[order])
    return order[np.r_[True, best[1:] < best[:-1]]]


def _front(axes: Axes, cost: pd.Series, quality: pd.Series, *, rising: bool) -> None:
    found = pareto(cost.to_numpy(float), quality.to_numpy(float), rising=rising)
    x, y = cost.to_numpy(float)[found], quality.to_numpy(float)[found]
    axes.step(
        np.r_[x, axes.get_xlim()[1]], np.r_[y, y[-1]], where="post", color="#AAAAAA", lw=0.8, ls=(0, (3, 2)), zorder=1
    )


def _engineering(value: float, _: object) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
