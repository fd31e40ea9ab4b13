"""Quality against what it costs, one point a method: Figure 1a of the paper, and online cost beside seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from sq.analysis.figures.labels import place_labels
from sq.analysis.figures.look import BLUE, DOUBLE, GREY, SINGLE, VERMILLION, blank, decade_labels, styled
from sq.analysis.figures.select import NAMES, OURS, scored
from sq.analysis.tables.order import training

Quality = Literal["kl", "ppl", "acc"]
AXES = {"kl": "KL from full precision (nats/token)", "ppl": "perplexity", "acc": "mean zero-shot accuracy (%)"}
# Marker and colour by kind; printed in grey, the marker alone shows the kind.
MARKS = {"SingleQuant": ("o", VERMILLION), "closed form": ("s", BLUE), "trained": ("^", GREY)}
LINEAR = 1e5  # multiply-adds below which the axis is linear, so that zero has a place on it
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@styled
def figure_tradeoff(frame: pd.DataFrame, *, overrides: Sequence[str] = (), quality: Quality = "kl") -> Figure:
    """Models quantized an hour (3600 s / quantization seconds), and its ratio to the slowest, against the quality.

    Args:
        frame, overrides: as of all figures.
        quality: "kl" (nats per token) or "ppl" on the first text, or "acc" (mean of the tasks, percent).
    """
    points = _points(frame, "figure_tradeoff", overrides, quality)
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
    _draw_points(axes, hours, points)
    return figure


@styled
def figure_quality_cost(frame: pd.DataFrame, *, overrides: Sequence[str] = (), quality: Quality = "kl") -> Figure:
    """Left against online multiply-adds a token (all layers), right against quantization seconds; line: Pareto front.

    Arguments: as of `figure_tradeoff`.
    """
    points = _points(frame, "figure_quality_cost", overrides, quality)
    figure = blank(DOUBLE, 2.7)
    online, seconds = figure.subplots(1, 2, sharey=True)
    _quality_axis(online, points, quality)
    online.set_xscale("symlog", linthresh=LINEAR, linscale=0.6)
    online.set_xlim(-0.4 * LINEAR, max(float(points["multiply_adds"].max()), LINEAR) * 3)
    online.xaxis.set_major_formatter(_engineering)
    online.set_xlabel("online multiply-adds per token, all layers")
    seconds.set(xscale="log", xlim=(points["seconds"].min() / 1.8, points["seconds"].max() * 2.5))
    seconds.xaxis.set_major_formatter("{x:g}")
    seconds.xaxis.set_minor_formatter(NullFormatter())
    seconds.set_xlabel("quantization time (s)")
    for axes, cost in ((online, "multiply_adds"), (seconds, "seconds")):
        best = points.iloc[pareto(points[cost].to_numpy(), points["quality"].to_numpy(), rising=quality == "acc")]
        x, y = np.r_[best[cost], axes.get_xlim()[1]], np.r_[best["quality"], best["quality"].iloc[-1]]
        axes.step(x, y, where="post", color="#AAAAAA", lw=0.8, ls=(0, (3, 2)), zorder=1)
        _draw_points(axes, points[cost], points)
    online.legend(loc="upper right")
    return figure


def pareto(cost: np.ndarray, quality: np.ndarray, *, rising: bool) -> np.ndarray:
    """Indices of the points that no other beats in both, by rising cost; `rising`: a higher quality is better."""
    better = -quality if rising else quality
    order = np.lexsort((better, cost))
    best = np.minimum.accumulate(better[order])
    return order[np.r_[True, best[1:] < best[:-1]]]


def _points(frame: pd.DataFrame, experiment: str, overrides: Sequence[str], quality: Quality) -> pd.DataFrame:
    """Label, kind, quality, seconds and multiply-adds (a token, all layers) of each method, from the same run."""
    runs = scored(frame, experiment, overrides, quality, needs="quantize/seconds")
    runs = runs[runs["quantize/seconds"].notna()]  # full precision quantizes nothing
    points = pd.DataFrame(
        {
            "label": runs.apply(_label, axis=1),
            "kind": runs.apply(_kind, axis=1),
            "quality": runs["quality"] * (100 if quality == "acc" else 1),
            "seconds": runs["quantize/seconds"].astype(float),
            "multiply_adds": runs["transform/multiply_adds"].astype(float),
        }
    )
    return points.reset_index(drop=True)


def _label(run: pd.Series) -> str:
    name = NAMES.get(run["method"], str(run["method"]))
    amount, unit = training(run)
    return f"{name}, {amount:g} {unit}" if unit else name


def _kind(run: pd.Series) -> str:
    if training(run)[0] > 0:
        return "trained"
    return "SingleQuant" if run["method._target_"] == OURS else "closed form"


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


def _draw_points(axes: Axes, x: pd.Series, points: pd.DataFrame) -> None:
    """A marked and labelled point a method; ours in colour, on top."""
    for kind, (marker, colour) in MARKS.items():
        chosen = points["kind"] == kind
        if chosen.any():
            y = points["quality"][chosen]
            axes.plot(x[chosen], y, marker, color=colour, mec="white", mew=0.4, ms=5, label=kind)
    colours = [VERMILLION if kind == "SingleQuant" else "#222222" for kind in points["kind"]]
    place_labels(axes, list(x), list(points["quality"]), list(points["label"]), colours, fontsize=7)


def _engineering(value: float, _: object) -> str:
    size, unit = next((pair for pair in UNITS if abs(value) >= pair[0]), (1, ""))
    return f"{value / size:g}{unit}"
