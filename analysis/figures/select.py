"""The runs that a figure shows: the finished ones of its experiment, or an error with the command that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sq.analysis.expected import command, of_experiment
from sq.analysis.results import MissingRuns
from sq.runs.results import ACTIVATIONS

OURS = "sq.methods.singlequant.SingleQuant"
# How methods are written in figures; one without an entry is written as in its config.
NAMES = {
    "rtn": "RTN",
    "smoothquant": "SmoothQuant",
    "quarot": "QuaRot",
    "duquant": "DuQuant",
    "omniquant": "OmniQuant",
    "flatquant": "FlatQuant",
    "spinquant": "SpinQuant",
    "singlequant": "SingleQuant",
    "singlequant_folded": "SingleQuant, folded",
    "cat": "CAT",
    "hadamard": "Hadamard",
    "mrgptq": "MR-GPTQ",
    "folded_rank_16": "+ rank 16",
    "full_width": "full width",
    "dense_bound": "dense bound",
}


def finished(frame: pd.DataFrame, experiment: str, overrides: Sequence[str], needs: str = "status") -> pd.DataFrame:
    """The finished runs of an experiment that have a value in the column `needs`, in the order of its sweep.

    Raises:
        MissingRuns: there are none; it carries the command.
    """
    runs = of_experiment(frame, experiment, overrides)
    runs = runs[(runs["status"] == "finished") & runs[needs].notna()] if needs in runs else runs.iloc[:0]
    if runs.empty:
        lacks = "is there" if needs == "status" else f"has {needs}"
        raise MissingRuns(f"no finished run of {experiment} {lacks}", command(experiment, overrides))
    return runs.reset_index(drop=True)


def scored(
    frame: pd.DataFrame, experiment: str, overrides: Sequence[str], metric: str, needs: str = "status"
) -> pd.DataFrame:
    """Finished runs that have `needs`; "quality": "kl", "ppl" or "top1" on the first text, or mean "acc"."""
    runs = finished(frame, experiment, overrides, needs)
    texts = [text for value in runs.get("task.perplexity.texts", ()) if isinstance(value, list) for text in value]
    column = "acc/mean" if metric == "acc" else f"{metric}/{texts[0] if texts else ''}"
    runs = finished(frame, experiment, overrides, column)
    return runs.assign(quality=runs[column].astype(float))


def with_file(frame: pd.DataFrame, experiment: str, overrides: Sequence[str], name: str) -> tuple[pd.Series, Path]:
    """The last finished run of an experiment, and a file of its directory.

    Raises:
        MissingRuns: the run is not there, or the file is gone.
    """
    run = finished(frame, experiment, overrides).iloc[-1]
    path = Path(run["folder"]) / name
    if not path.is_file():
        raise MissingRuns(f"{path} is missing", f"{command(experiment, overrides)} force=true")
    return run, path


def read_activations(
    frame: pd.DataFrame, experiment: str, overrides: Sequence[str]
) -> tuple[pd.Series, dict[str, np.ndarray]]:
    """The run of an experiment with task=activations, and the arrays of one site that it kept, float32.

    before, after_art, after_urt (or after_balance, after_rotation): tokens of the site, (T, n). givens_channels (2,):
    the channels that ART's first step rotates, by givens_angle (radians); givens_before, givens_after: these channels,
    (T, 2).
    """
    run, path = with_file(frame, experiment, overrides, ACTIVATIONS)
    with np.load(path) as arrays:
        return run, dict(arrays)
