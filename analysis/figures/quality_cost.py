"""Quality against what it costs, one point a method: Figure 1a of the paper, and online cost beside seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from sq.analysis.expected import expected
from sq.analysis.figures.labels import place_labels
from sq.analysis.figures.look import BLUE, DOUBLE, GREY, SINGLE, VERMILLION, blank, decade_labels, styled, tip
from sq.analysis.figures.points import Quality, points_of
from sq.analysis.figures.select import scored
from sq.analysis.results import MissingRuns
from sq.errors import ConfigError

AXES = {"kl": "KL from full precision (nats/token)", "ppl": "perplexity", "acc": "mean zero-shot accuracy (%)"}
# Marker, size and colour by kind, in drawing order: a trained method is an open triangle around whatever it lies on.
# Printed in grey, the marker alone shows the kind.
MARKS = {"trained": ("^", 8.0, GREY), "closed form": ("s", 4.2, BLUE), "SingleQuant": ("o", 5.0, VERMILLION)}
LINEAR = 1e5  # multiply-adds below which the axis is linear, so that zero has a place on it
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
REAL = "table_main"  # the experiment whose runs stand in for those of figure_quality_cost
CROWD = 16  # points that are all labelled; of more, the Pareto front alone
Cost = Literal["multiply_adds", "seconds"]


@styled
def figure_tradeoff(frame: pd.DataFrame, *, overrides: Sequence[str] = (), quality: Quality = "kl") -> Figure:
    """Models quantized an hour (3600 s / quantization seconds), and its ratio to the slowest, against the quality.

    Args:
        frame, overrides: as of all figures.
        quality: "kl" (nats per token) or "ppl" on the first text, or "acc" (mean of the tasks, percent).
    """
    points = points_of(scored(frame, "figure_tradeoff", overrides, quality, needs="quantize/seconds"), quality)
    figure = blank(SINGLE, 2.5)
    axes = figure.subplots()
    hours = 3600 / points["seconds"]
    slowest = float(hours.min())
    axes.set(xscale="log", xlim=(slowest / 1.8, float(hours.max()) * 2.2), xlabel="models quantized per hour")
    ratio, hourly = (lambda x: np.asarray(x, float) / slowest), (lambda x: np.asarray(x, float) * slowest)
    above = axes.secondary_xaxis("top", functions=(ratio, hourly))
    above.set_xlabel("speed-up over the slowest")
    for axis in (axes.xaxis, above.xaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else "")
        axis.set_minor_formatter(NullFormatter())
    _quality_axis(axes, points, quality)
    _draw_points(axes, hours, points, range(len(points)), around=((), ()))
    return figure


@styled
def figure_quality_cost(
    frame: pd.DataFrame,
    *,
    overrides: Sequence[str] = (),
    quality: Quality = "kl",
    experiment: Literal["figure_quality_cost", "table_main"] | None = None,
) -> Figure:
    """Left against online multiply-adds a token (all layers), right against quantization seconds; line: Pareto front.

    Args:
        frame, overrides, quality: as of `figure_tradeoff`.
        experiment: whose runs are shown; None = those of figure_quality_cost or, where none of them is there, those of
            table_main on the same model, with one activation clip a site as a second, open point of each method.
    """
    own, needs = experiment or "figure_quality_cost", "quantize/seconds"
    try:
        runs = scored(frame, own, overrides, quality, needs)
    except MissingRuns as missing:
        if experiment or not _same_model(own, REAL, overrides):
            raise
        try:
            runs = scored(frame, REAL, overrides, quality, needs)
        except MissingRuns:
            raise missing from None  # with the command of the figure's own experiment
    return draw_quality_cost(points_of(runs, quality), quality)


def draw_quality_cost(points: pd.DataFrame, quality: Quality) -> Figure:
    """The two panels of `figure_quality_cost` for points of `sq.analysis.figures.points`."""
    figure = blank(DOUBLE, 2.9)
    online, seconds = figure.subplots(1, 2, sharey=True)
    _quality_axis(online, points, quality)
    online.set_xscale("symlog", linthresh=LINEAR, linscale=0.6)
    online.set_xlim(-0.4 * LINEAR, max(float(points["multiply_adds"].max()), LINEAR) * 3)
    online.xaxis.set_major_formatter(_engineering)
    online.set_xlabel("online multiply-adds per token, all layers")
    seconds.set(xscale="log", xlim=(points["seconds"].min() / 1.8, points["seconds"].max() * 2.5))
    decade_labels(seconds.xaxis)
    seconds.set_xlabel("quantization time (s)")
    plain = points[~points["site"]] if not points["site"].all() else points
    costs: tuple[tuple[Axes, Cost], ...] = ((online, "multiply_adds"), (seconds, "seconds"))
    for axes, cost in costs:
        front = pareto(plain[cost].to_numpy(), plain["quality"].to_numpy(), rising=quality == "acc")
        best = plain.iloc[front]
        x, y = np.r_[best[cost], axes.get_xlim()[1]], np.r_[best["quality"], best["quality"].iloc[-1]]
        axes.step(x, y, where="post", color="#AAAAAA", lw=0.8, ls=(0, (3, 2)), zorder=1)
        labelled = range(len(plain)) if len(plain) <= CROWD else front
        _draw_points(axes, plain[cost], plain, labelled, around=(list(points[cost]), list(points["quality"])))
        _draw_clips(axes, cost, points, plain)
    figure.legend(*online.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    figure.suptitle(points.attrs["title"], fontsize=8, x=0.99, ha="right")
    return figure


def pareto(cost: np.ndarray, quality: np.ndarray, *, rising: bool) -> np.ndarray:
    """Indices of the points that no other beats in both, by rising cost; `rising`: a higher quality is better."""
    better = -quality if rising else quality
    order = np.lexsort((better, cost))
    best = np.minimum.accumulate(better[order])
    return order[np.r_[True, best[1:] < best[:-1]]]


def _same_model(first: str, second: str, overrides: Sequence[str]) -> bool:
    """Whether two experiments have the same models under these overrides; not where one of them cannot be composed."""
    try:
        return set(expected(first, overrides)["model"]) == set(expected(second, overrides)["model"])
    except ConfigError:  # the model of one is not installed
        return False


def _quality_axis(axes: Axes, points: pd.DataFrame, quality: Quality) -> None:
    """Limits, scale and name of the y axis: KL and perplexity spread over decades, accuracy does not."""
    low, high = float(points["quality"].min()), float(points["quality"].max())
    axes.set_ylabel(AXES[quality])
    if quality == "acc":
        margin = 0.12 * (high - low or 1)
        axes.set_ylim(low - margin, high + margin)
        return
    axes.set(yscale="log", ylim=(low / 1.4, high * 1.4))
    decade_labels(axes.yaxis)


def _draw_points(
    axes: Axes,
    x: pd.Series,
    points: pd.DataFrame,
    labelled: Sequence[int] | np.ndarray,
    around: Sequence[Sequence[float]],
) -> None:
    """A marked point a method, those of the given places labelled off all points `around`; ours in colour, on top."""
    for place, (kind, (marker, size, colour)) in enumerate(MARKS.items()):
        look: dict[str, Any] = {
            "mfc": "none" if kind == "trained" else colour,
            "mec": colour if kind == "trained" else "white",
        }
        for number, (at, (_, point)) in enumerate(zip(x, points.iterrows(), strict=True)):
            if point["kind"] == kind:
                axes.plot(at, point["quality"], marker, ms=size, mew=0.8, color=colour, zorder=3 + place, **look)
                tip(axes.lines[-1], point["tip"])
                axes.lines[-1].set_label(f"_{number}" if kind in axes.get_legend_handles_labels()[1] else kind)
    some = points.iloc[list(labelled)]
    colours = [VERMILLION if kind == "SingleQuant" else "#222222" for kind in some["kind"]]
    at, above = list(x.iloc[list(labelled)]), list(some["quality"])
    place_labels(axes, at, above, list(some["label"]), colours, avoid=around, fontsize=7)


def _draw_clips(axes: Axes, cost: Cost, points: pd.DataFrame, plain: pd.DataFrame) -> None:
    """Runs with a clip for each site beside runs without, as small open points that hang on those."""
    for number, (_, point) in enumerate(points.drop(plain.index).iterrows()):
        for _, other in plain[plain["label"] == point["label"]].iterrows():
            axes.plot(
                [other[cost], point[cost]], [other["quality"], point["quality"]], color="#AAAAAA", lw=0.6, zorder=2
            )
        colour = MARKS[point["kind"]][2]
        axes.plot(point[cost], point["quality"], "o", ms=3.5, mfc="white", mec=colour, mew=0.8, zorder=3)
        tip(axes.lines[-1], point["tip"])
        axes.lines[-1].set_label(f"_clip {number}" if number else "with one clip a site")


def _engineering(value: float, _: object) -> str:
    size, unit = next((pair for pair in UNITS if abs(value) >= pair[0]), (1, ""))
    return f"{value / size:g}{unit}"
