"""Figure 1c of the paper: the activations of a site before, after ART and after URT, or after balance and rotation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D

from sq.analysis.figures.look import BLUE, DOUBLE, TIMES, blank, styled, tips
from sq.analysis.figures.select import read_activations

TOKENS, COLUMNS = 96, 256  # of the surfaces: more could not be distinguished at print size
STAGES = {
    "before": "before",
    "after_art": "after ART",
    "after_urt": "after ART and URT",
    "after_balance": "after balance",
    "after_rotation": "after both",
}
# From light to dark: ordinary values are paper-like and outliers stand out, in grey as well.
HEIGHTS = LinearSegmentedColormap.from_list("heights", ["#E3EBF3", "#7FA9D1", "#1F5E9C", "#0A2A4D"])
TOLD = 5  # largest channels of a profile that tell their value


@styled
def figure_outliers(frame: pd.DataFrame, *, overrides: Sequence[str] = ()) -> Figure:
    """Above |activation| over channel and token, below each channel's largest value; one scale for all stages.

    Channels that cannot be distinguished on paper share a line of the surface, which shows the largest of them.
    """
    run, kept = read_activations(frame, "figure_outliers", overrides)
    titles = {name: title for name, title in STAGES.items() if name in kept}  # those that the run's method has
    stages = [np.abs(kept[name]).astype(float) for name in titles]
    top = max(float(stage.max()) for stage in stages)
    figure = blank(DOUBLE, 3.2)
    grid = figure.add_gridspec(2, 3, height_ratios=(1.7, 1))
    profiles = [figure.add_subplot(grid[1, column]) for column in range(3)]
    for column, (stage, title) in enumerate(zip(stages, titles.values(), strict=True)):
        surface = figure.add_subplot(grid[0, column], projection="3d")
        _draw_surface(surface, stage[:TOKENS], top)
        ratio = np.median(stage.max(1) / np.sqrt(np.square(stage).mean(1)))  # as in result.json
        surface.set_title(f"{title}: peak {stage.max():.1f}, {ratio:.1f} {TIMES} rms", y=1.0)
        n, profile = stage.shape[1], profiles[column]
        profile.fill_between(np.arange(n) + 0.5, stage.max(0), step="mid", color=BLUE, lw=0)
        profile.set_xlabel(f"channel of {run['task.activations.site']}, layer {run['task.activations.layer']:.0f}")
        profile.set(xlim=(0, n), ylim=(0, 1.05 * top))
        largest = np.argsort(-stage.max(0))[:TOLD]
        told = [f"channel {channel}: {stage[:, channel].max():.1f}" for channel in largest]
        tips(profile, largest + 0.5, stage.max(0)[largest], told)
        if column:
            profile.tick_params(labelleft=False)
    profiles[0].set_ylabel("largest |activation|")
    return figure


def _draw_surface(axes: Axes3D, tokens: np.ndarray, top: float) -> None:
    """|activation| over channel and token, on the scale of all stages; neighbouring channels show their largest."""
    pooled = -(-tokens.shape[1] // COLUMNS)
    shown = np.maximum.reduceat(tokens, np.arange(0, tokens.shape[1], pooled), axis=1)
    width = tokens.shape[1] / shown.shape[1]
    channel, token = np.meshgrid((np.arange(shown.shape[1]) + 0.5) * width, np.arange(len(shown)))
    # The root gives ordinary values a colour of their own beside outliers that are tens of times larger.
    colours = {"cmap": HEIGHTS, "norm": PowerNorm(0.5, 0, top), "rasterized": True}
    rows, columns = shown.shape
    axes.plot_surface(channel, token, shown, rcount=rows, ccount=columns, linewidth=0, antialiased=False, **colours)
    axes.set_zlim(0, top)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_visible(False)
        axis.set_major_locator(MaxNLocator(3))
    axes.tick_params(pad=-4, labelsize=6)
    axes.set_box_aspect((1.5, 1, 0.75), zoom=1.1)
    axes.view_init(elev=24, azim=-62)
    # Written in the panel's own plane: matplotlib's 3D labels leave the panel that they belong to.
    small = {"transform": axes.transAxes, "fontsize": 7, "ha": "center", "va": "center"}
    axes.text2D(0.30, 0.04, "channel", rotation=-13, **small)
    axes.text2D(0.99, 0.10, "token", rotation=40, **small)
    axes.text2D(0.91, 0.755, "|activation|", **small)
