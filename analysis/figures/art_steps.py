"""Figure 4 of the paper: quality against the number of ART's steps."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from sq.analysis.figures.look import BLUE, GREY, SINGLE, VERMILLION, blank, decade_labels, note, styled, tips
from sq.analysis.figures.select import scored

CURVES = {"art": ("ART alone", "s", "-", BLUE), "art_then_urt": ("ART, then URT", "o", "--", VERMILLION)}
LEVELS = {"rtn": "RTN, no transform", "quarot": "QuaRot"}


@styled
def figure_art_steps(frame: pd.DataFrame, *, overrides: Sequence[str] = ()) -> Figure:
    """KL (nats per token) against the plane rotations of ART per axis, alone and with URT behind it."""
    runs = scored(frame, "figure_art_steps", overrides, "kl")
    figure = blank(SINGLE, 2.2)
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for method, (label, marker, dashes, colour) in CURVES.items():
        curve = runs[runs["method"] == method].sort_values("method.art_steps")
        if curve.empty:
            continue
        steps, middle = curve["method.art_steps"].astype(float), (len(curve) - 1) // 2
        axes.plot(steps, curve["quality"], marker=marker, ls=dashes, color=colour, clip_on=False)
        told = [f"{label}, {step:g} steps: KL {kl:.4f}" for step, kl in zip(steps, curve["quality"], strict=True)]
        tips(axes, steps, curve["quality"], told)
        note(axes, label, (steps.iloc[middle], curve["quality"].iloc[middle]), (4, 5), color=colour)
        axes.set_xticks(sorted({*steps}))
    for method, label in LEVELS.items():
        level = runs[runs["method"] == method]["quality"]
        if len(level):
            axes.axhline(level.iloc[-1], color=GREY, lw=0.8, ls=":", zorder=1)
            note(axes, label, (1, level.iloc[-1]), (0, 2), xycoords=("axes fraction", "data"), ha="right")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.minorticks_off()
    decade_labels(axes.yaxis)
    axes.set(xlabel="ART steps per axis", ylabel="KL (nats/token)")
    return figure
