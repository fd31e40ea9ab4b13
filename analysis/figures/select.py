"""The runs that a figure shows: the finished ones of its experiment, or an error with the command that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sq.analysis.expected import command, of_experiment
from sq.analysis.results import MissingRuns

OURS = "sq.methods.singlequant.SingleQuant"
# How methods are written in figures; one without an entry is written as in its config. Variants of
# SingleQuant begin with "+" and share its marker.
NAMES = {
    "rtn": "RTN",
    "smoothquant": "SmoothQuant",
    "quarot": "QuaRot",
    "duquant": "DuQuant",
    "omniquant": "OmniQuant",
    "flatquant": "FlatQuant",
    "spinquant": "SpinQuant",
    "singlequant": "SingleQuant",
    "singlequant_site_clip": "+ site clip",
    "folded_rank_16": "+ rank 16",
    "full_width": "full width",
    "dense_bound": "dense bound",
}


def finished(
    frame: pd.DataFrame, experiment: str, overrides: Sequence[str] = (), needs: str = "status"
) -> pd.DataFrame:
    """The finished runs of an experiment in the order of its sweep.

    Args:
        frame: of `sq.analysis.load`.
        experiment: file of conf/experiment/.
        overrides: that the experiment was run with, such as "model=llama2_7b".
        needs: the column that a run must have a value in.

    Raises:
        MissingRuns: there are none; it carries the command.
    """
    runs = of_experiment(frame, experiment, overrides)
    runs = runs[(runs["status"] == "finished") & runs[needs].notna()] if needs in runs else runs.iloc[:0]
    if runs.empty:
        lacks = "is there" if needs == "status" else f"has {needs}"
        raise MissingRuns(f"no finished run of {experiment} {lacks}", command(experiment, overrides))
    return runs.reset_index(drop=True)


def file_of(run: pd.Series, name: str, experiment: str, overrides: Sequence[str] = ()) -> Path:
    """A file of the run directory.

    Raises:
        MissingRuns: it is gone.
    """
    path = Path(run["folder"]) / name
    if not path.is_file():
        raise MissingRuns(f"{path} is missing", f"{command(experiment, overrides)} force=true")
    return path


def text_metric(runs: pd.DataFrame, metric: str) -> str:
    """The column of a metric on the first text of the runs: "kl/embedded", "ppl/wikitext2"; "acc/mean" has no text."""
    if metric == "acc":
        return "acc/mean"
    texts = [text for value in runs.get("task.perplexity.texts", ()) if isinstance(value, list) for text in value]
    return f"{metric}/{texts[0]}" if texts else f"{metric}/"
