"""Figure 2 of the paper: loss and gradient norm of SpinQuant over ten times its published steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sq.analysis.figures.look import BLUE, GREY, SINGLE, VERMILLION, blank, styled
from sq.analysis.figures.select import file_of, finished
from sq.learn.log import TRAINING

PUBLISHED = 100  # steps of the released scripts (conf/method/spinquant.yaml)


@styled
def figure_convergence(frame: pd.DataFrame, *, overrides: Sequence[str] = ()) -> Figure:
    """Loss (nats per token) and Riemannian gradient norms of R1 and of all R2, step by step.

    Faint: each step. Bold: its mean over the steps that deal all calibration windows once, so that windows which differ
    in difficulty do not show as noise of the training.

    Args:
        frame: of `sq.analysis.load`.
        overrides: that the experiment was run with, such as "model=llama2_7b".

    Raises:
        MissingRuns: the training is not there; the command makes it.
    """
    experiment = "figure_convergence"
    run = finished(frame, experiment, overrides).iloc[-1]
    steps = training_steps(file_of(run, TRAINING, experiment, overrides))
    windows = run["calibration.tokens"] / run["calibration.window"]
    span = max(1, round(windows / min(run["method.batch"], windows)))
    figure = blank(SINGLE, 3.0)
    loss, norm = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    _curve(loss, steps, "loss", BLUE, "-", span)
    loss.set_ylabel("loss (nats/token)")
    for key, colour, dashes, label in (
        ("gradient_norm_r1", BLUE, "-", "$R_1$, residual stream"),
        ("gradient_norm_r2", VERMILLION, "--", "$R_2$, all heads"),
    ):
        smooth = _curve(norm, steps, key, colour, dashes, span)
        norm.annotate(
            label, (steps["step"].iloc[-1], smooth[-1]), (0, 9), textcoords="offset points", ha="right", color=colour,
            fontsize=7, bbox={"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.8},
        )  # fmt: skip
    norm.set_yscale("log")
    norm.set_ylabel("gradient norm")
    norm.set_xlabel(f"step (learning rate {run['method.lr']:g} to 0, {run['method.schedule']})")
    norm.set_xlim(0, steps["step"].iloc[-1] + 1)
    for axes in (loss, norm):
        axes.axvline(PUBLISHED, color=GREY, lw=0.8, ls=":")
    loss.annotate(
        f"published: {PUBLISHED} steps", (PUBLISHED, 1), (3, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", va="top", fontsize=7, color="#555555",
    )  # fmt: skip
    return figure


def training_steps(path: Path) -> pd.DataFrame:
    """Records of training.jsonl that are steps, by step; the last one of a training has no loss and is left out."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pd.DataFrame([record for record in records if "loss" in record])


def _curve(axes: Axes, steps: pd.DataFrame, key: str, colour: str, dashes: str, span: int) -> np.ndarray:
    axes.plot(steps["step"], steps[key], color=colour, lw=0.3, alpha=0.35, rasterized=len(steps) > 5000)
    smooth = steps[key].rolling(span, center=True, min_periods=1).mean().to_numpy(float)
    axes.plot(steps["step"], smooth, color=colour, ls=dashes)
    return smooth
