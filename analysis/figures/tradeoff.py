"""Figure 1a of the paper: quality against how many models an hour a method quantizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from sq.analysis.figures.labels import place_labels
from sq.analysis.figures.look import SINGLE, VERMILLION, blank, styled
from sq.analysis.figures.points import MARKS, Kind, Quality, method_points

AXES = {"kl": "KL from full precision (nats/token)", "ppl": "perplexity", "acc": "mean zero-shot accuracy (%)"}


@styled
def figure_tradeoff(frame: pd.DataFrame, *, overrides: Sequence[str] = (), quality: Quality = "kl") -> Figure:
    """Models quantized an hour (3600 s / quantization seconds), and its ratio to the slowest, against the quality.

    Args:
        frame: of `sq.analysis.load`.
        overrides: that the experiment was run with, such as "model=llama2_7b".
        quality: "kl", "ppl" or "acc".

    Raises:
        MissingRuns: no runs of the methods; the command makes them.
    """
    points = method_points(frame, "figure_tradeoff", overrides, quality=quality)
    figure = blank(SINGLE, 2.5)
    axes = figure.subplots()
    hours = 3600 / points["seconds"]
    slowest = float(hours.min())
    axes.set_xscale("log")
    axes.set_xlim(slowest / 1.8, float(hours.max()) * 2.2)
    axes.set_xlabel("models quantized per hour")
    ratio, hourly = (lambda x: np.asarray(x, float) / slowest), (lambda x: np.asarray(x, float) * slowest)
    above = axes.secondary_xaxis("top", functions=(ratio, hourly))
    above.set_xlabel("speed-up over the slowest")
    for axis in (axes.xaxis, above.xaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else ""))
        axis.set_minor_formatter(NullFormatter())
    quality_axis(axes, points, quality)
    draw_points(axes, hours, points)
    return figure


def quality_axis(axes: Axes, points: pd.DataFrame, quality: Quality) -> None:
    """Limits, scale and name of the y axis: KL and perplexity spread over decades, accuracy does not."""
    values = points["quality"]
    axes.set_ylabel(AXES[quality])
    if quality == "acc":
        points["quality"] = 100 * values
        margin = 0.12 * (points["quality"].max() - points["quality"].min() or 1)
        axes.set_ylim(points["quality"].min() - margin, points["quality"].max() + margin)
        return
    axes.set_yscale("log")
    axes.set_ylim(float(values.min()) / 1.4, float(values.max()) * 1.4)
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(_leading))


def draw_points(axes: Axes, x: pd.Series, points: pd.DataFrame) -> None:
    """A marked and labelled point a method; ours in colour and bold order, on top."""
    for kind, (marker, colour) in MARKS.items():
        chosen = points["kind"] == kind
        axes.plot(x[chosen], points["quality"][chosen], marker, color=colour, mec="white", mew=0.4, ms=5, label=kind)
    colours = [VERMILLION if kind == "SingleQuant" else "#222222" for kind in points["kind"]]
    place_labels(axes, list(x), list(points["quality"]), list(points["label"]), colours, fontsize=7)


def kinds(axes: Axes, points: pd.DataFrame) -> None:
    """What the markers mean, for the kinds that are there."""
    shown: list[Kind] = [kind for kind in MARKS if (points["kind"] == kind).any()]
    handles, labels = axes.get_legend_handles_labels()
    axes.legend([handles[labels.index(kind)] for kind in shown], shown, loc="upper right")


def _leading(value: float, _: object) -> str:
    """Ticks at 1, 2 and 5 of a decade."""
    digit = float(f"{value:e}".split("e")[0])
    return f"{value:g}" if round(digit, 6) in (1, 2, 5) else ""
