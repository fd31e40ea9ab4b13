"""Figure 2 of the paper: loss and gradient norm of SpinQuant over ten times its published steps."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from sq.analysis.figures.look import BLUE, GREY, SINGLE, VERMILLION, blank, note, styled, tips
from sq.analysis.figures.select import with_file
from sq.runs.results import TRAINING

NORMS = {
    "gradient_norm_r1": ("$R_1$, residual stream", BLUE, "-"),
    "gradient_norm_r2": ("$R_2$, all heads", VERMILLION, "--"),
}
PUBLISHED = 100  # steps of the released scripts (conf/method/spinquant.yaml)


@styled
def figure_convergence(frame: pd.DataFrame, *, overrides: Sequence[str] = ()) -> Figure:
    """Loss (nats per token) and Riemannian gradient norms of R1 and of all R2, step by step.

    Bold: means over the steps that deal all calibration windows once, so that windows which differ in difficulty do not
    show as noise of the training. Faint: the gradient norm of each step.
    """
    run, path = with_file(frame, "figure_convergence", overrides, TRAINING)
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    steps = pd.DataFrame([record for record in records if "loss" in record])  # the last of a training has none
    windows = run["calibration.tokens"] / run["calibration.window"]
    span = max(1, round(windows / min(run["method.batch"], windows)))
    whole = steps.iloc[: max(1, len(steps) // span) * span]  # a last, incomplete pass has a mean of other windows
    means = whole.groupby(whole.index // span)[["step", "loss", *NORMS]].mean()
    last = steps["step"].iloc[-1]
    figure = blank(SINGLE, 3.0)
    loss, norm = figure.subplots(2, 1, sharex=True)
    loss.plot(means["step"], means["loss"], color=BLUE)
    tips(loss, *_told(means, "loss"))
    loss.set_ylabel("loss (nats/token)")
    for key, (label, colour, dashes) in NORMS.items():
        norm.plot(steps["step"], steps[key], color=colour, lw=0.3, alpha=0.35, rasterized=len(steps) > 5000)
        norm.plot(means["step"], means[key], color=colour, ls=dashes)
        tips(norm, *_told(means, key))
        place = ("axes fraction", "data")
        note(norm, label, (1, steps[key].max()), (0, 1), colour, xycoords=place, ha="right", va="bottom")
    norm.set(ylabel="gradient norm", ylim=(0, 1.12 * steps[list(NORMS)].max().max()), xlim=(0, last + 1))
    norm.set_xlabel(f"step (learning rate {run['method.lr']:g} to 0, {run['method.schedule']})")
    if last > PUBLISHED:
        for axes in (loss, norm):
            axes.axvline(PUBLISHED, color=GREY, lw=0.8, ls=":")
        text = f"published: {PUBLISHED} steps"
        note(loss, text, (PUBLISHED, 1), (3, -2), xycoords=("data", "axes fraction"), va="top")
    return figure


def _told(means: pd.DataFrame, key: str) -> tuple[list[float], list[float], list[str]]:
    """Some fifty points of a curve, and what each of them tells."""
    some = means.iloc[:: max(1, len(means) // 50)]
    texts = [f"step {step:.0f}: {value:.4f}" for step, value in zip(some["step"], some[key], strict=True)]
    return list(some["step"]), list(some[key]), texts
