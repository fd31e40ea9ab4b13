"""Figure 1c of the paper: the activations of a site before, after ART and after URT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sq.analysis.figures.activations import read_activations
from sq.analysis.figures.look import BLUE, DOUBLE, TIMES, blank, styled

TOKENS, COLUMNS = 96, 256  # of the images: more could not be told apart at print size
STAGES = (("before", "before"), ("after_art", "after ART"), ("after_urt", "after ART and URT"))


@styled
def figure_outliers(frame: pd.DataFrame, *, overrides: Sequence[str] = ()) -> Figure:
    """Above |activation| by token and channel, below each channel's largest value; one scale for all stages.

    Channels that paper cannot tell apart share a column of the image, which shows the largest of them.

    Arguments and errors: as of `figure_givens`.
    """
    kept = read_activations(frame, "figure_outliers", overrides)
    stages = [np.abs(getattr(kept, name)).astype(float) for name, _ in STAGES]
    top = max(float(stage.max()) for stage in stages)
    figure = blank(DOUBLE, 2.9)
    panels = figure.subplots(2, 3, sharex=True, sharey="row", height_ratios=(1.25, 1))
    # Decades keep ordinary values visible beside outliers that are tens of times larger.
    norm = LogNorm(vmin=top / 200, vmax=top, clip=True)
    for (image, profile), stage, (_, title) in zip(panels.T, stages, STAGES, strict=True):
        n = stage.shape[1]
        shown = _pooled(stage[:TOKENS])
        drawn = image.imshow(
            shown, norm=norm, aspect="auto", interpolation="nearest", extent=(0, n, len(shown), 0), rasterized=True
        )
        image.spines[:].set_visible(False)
        image.set_title(f"{title}: peak {stage.max():.1f}, {peak_over_rms(stage):.1f} {TIMES} rms")
        profile.fill_between(np.arange(n) + 0.5, stage.max(0), step="mid", color=BLUE, lw=0)
        profile.set_xlabel(f"channel of {kept.site}, layer {kept.layer}")
        profile.set_xlim(0, n)
    panels[0, 0].set_ylabel("token")
    panels[1, 0].set_ylabel("largest |activation|")
    panels[1, 0].set_ylim(0, 1.05 * top)
    bar = figure.colorbar(drawn, ax=list(panels[0]), pad=0.01, aspect=14)
    bar.set_label("|activation|")
    bar.outline.set_visible(False)
    return figure


def peak_over_rms(tokens: np.ndarray) -> float:
    """Median over tokens of max|x| / rms(x), as in result.json. tokens (T, n), none of them all zero."""
    return float(np.median(np.abs(tokens).max(1) / np.sqrt(np.square(tokens).mean(1))))


def _pooled(tokens: np.ndarray) -> np.ndarray:
    """The largest value of neighbouring channels, (T, at most COLUMNS)."""
    width = -(-tokens.shape[1] // COLUMNS)
    return np.maximum.reduceat(tokens, np.arange(0, tokens.shape[1], width), axis=1)
