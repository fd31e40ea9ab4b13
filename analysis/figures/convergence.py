"""Figure 2 of the paper: loss and gradient norm of SpinQuant over ten times its published steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sq.analysis.figures.look import BLUE, GREY, SINGLE, VERMILLION, blank, styled
from sq.analysis.figures.select import file_of, finished
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
    whole = steps.iloc[: max(1, len(steps) // span) * span]  # a last, incomplete pass has a mean of other windows
    means = whole.groupby(whole.index // span)[["step", "loss", *NORMS]].mean()
    figure = blank(SINGLE, 3.0)
    loss, norm = figure.subplots(2, 1, sharex=True)
    loss.plot(means["step"], means["loss"], color=BLUE)
    loss.set_ylabel("loss (nats/token)")
    for key, (label, colour, dashes) in NORMS.items():
        norm.plot(steps["step"], steps[key], color=colour, lw=0.3, alpha=0.35, rasterized=len(steps) > 5000)
        norm.plot(means["step"], means[key], color=colour, ls=dashes)
        norm.annotate(
            label, (1, steps[key].max()), (0, 1), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="bottom", color=colour, fontsize=7,
        )  # fmt: skip
    norm.set_ylabel("gradient norm")
    norm.set_ylim(0, 1.12 * steps[list(NORMS)].max().max())
    norm.set_xlabel(f"step (learning rate {run['method.lr']:g} to 0, {run['method.schedule']})")
    norm.set_xlim(0, steps["step"].iloc[-1] + 1)
    if steps["step"].iloc[-1] > PUBLISHED:
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
