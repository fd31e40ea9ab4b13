"""Figure 4 of the paper: quality against the number of ART's steps."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from sq.analysis.figures.look import BLUE, GREY, SINGLE, VERMILLION, blank, styled
from sq.analysis.figures.select import finished, text_metric
from sq.analysis.figures.tradeoff import _leading

CURVES = {"art": ("ART alone", "s", "-", BLUE), "art_then_urt": ("ART, then URT", "o", "--", VERMILLION)}
LEVELS = {"rtn": "RTN, no transform", "quarot": "QuaRot"}


@styled
def figure_art_steps(frame: pd.DataFrame, *, overrides: Sequence[str] = ()) -> Figure:
    """KL (nats per token) against the plane rotations of ART per axis, alone and with URT behind it.

    Args:
        frame: of `sq.analysis.load`.
        overrides: that the experiment was run with, such as "model=llama2_7b".

    Raises:
        MissingRuns: no runs of ART; the command makes them.
    """
    experiment = "figure_art_steps"
    column = text_metric(finished(frame, experiment, overrides), "kl")
    runs = finished(frame, experiment, overrides, column)
    figure = blank(SINGLE, 2.2)
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    last = 1.0
    for method, (label, marker, dashes, colour) in CURVES.items():
        curve = runs[runs["method"] == method].sort_values("method.art_steps")
        if curve.empty:
            continue
        steps = curve["method.art_steps"].astype(float)
        axes.plot(steps, curve[column], marker=marker, ls=dashes, color=colour, clip_on=False)
        axes.annotate(
            label, (steps.iloc[len(steps) // 2], curve[column].iloc[len(steps) // 2]), (4, 5),
            textcoords="offset points", color=colour, fontsize=7,
        )  # fmt: skip
        last = max(last, float(steps.max()))
        axes.set_xticks(sorted({*steps}))
    for method, label in LEVELS.items():
        level = runs[runs["method"] == method][column]
        if len(level):
            axes.axhline(level.iloc[-1], color=GREY, lw=0.8, ls=":", zorder=1)
            axes.annotate(
                label, (1, level.iloc[-1]), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", fontsize=7, color="#555555",
            )  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(_leading))
    axes.set_xlabel("ART steps per axis")
    axes.set_ylabel("KL (nats/token)")
    return figure
