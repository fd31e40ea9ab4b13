"""Activations of one site that a run kept (task=activations), as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sq.analysis.figures.select import file_of, finished
from sq.runs.results import ACTIVATIONS


@dataclass(frozen=True)
class Activations:
    """What `task=activations` keeps, float32.

    Attributes:
        layer, site: where in the model.
        before, after_art, after_urt: tokens of the site, (T, n).
        givens_channels: the two channels that ART's first step rotates, (2,).
        givens_angle: the angle of that rotation, radians.
        givens_before, givens_after: these two channels, (T, 2).
    """

    layer: int
    site: str
    before: np.ndarray
    after_art: np.ndarray
    after_urt: np.ndarray
    givens_channels: np.ndarray
    givens_angle: float
    givens_before: np.ndarray
    givens_after: np.ndarray


def read_activations(frame: pd.DataFrame, experiment: str, overrides: Sequence[str] = ()) -> Activations:
    """The activations that an experiment kept.

    Raises:
        MissingRuns: the run, or its activations.npz, is not there.
    """
    run = finished(frame, experiment, overrides).iloc[-1]
    with np.load(file_of(run, ACTIVATIONS, experiment, overrides)) as arrays:
        tokens = ("before", "after_art", "after_urt", "givens_channels", "givens_before", "givens_after")
        return Activations(
            layer=int(run["task.activations.layer"]),
            site=str(run["task.activations.site"]),
            givens_angle=float(arrays["givens_angle"]),
            **{name: arrays[name] for name in tokens},
        )
