"""The runs that a table puts side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from sq.analysis.expected import command, of_experiment
from sq.analysis.results import MissingRuns
from sq.analysis.tables.cells import texts_of
from sq.analysis.tables.protocol import measured, one_protocol


def compared(
    frame: pd.DataFrame,
    table: str,
    which: Mapping[str, Any],
    *,
    task: str,
    metric: str,
    full_precision: bool = False,
    several: Iterable[str] = (),
    times: bool = False,
) -> pd.DataFrame:
    """Runs of one protocol with their row names ("row"): those of an experiment, missing ones as such.

    Args:
        frame: of `sq.analysis.load` or `load_wandb`.
        table: the experiment, unless `which` names another.
        which: `experiment` (None = all runs of the frame), `overrides` that it was run with ("model=llama2_7b"), and
            column -> value, to choose among settings where the frame has several.
        task, several, times: of `sq.analysis.tables.protocol.one_protocol`.
        metric: what is shown, "kl" for kl/<text>.
        full_precision: keep the rows that are not quantized.

    Raises:
        MissingRuns: no run has the metric.
        DataError: runs of different settings.
    """
    columns = dict(which)
    experiment: str | None = columns.pop("experiment", table)
    overrides = columns.pop("overrides", ())
    runs = frame if experiment is None else of_experiment(frame, experiment, overrides)
    runs = measured(runs if full_precision else runs[runs["weights"] != "none"], task)
    if not texts_of(runs, metric):
        raise MissingRuns(f"no run has {metric}/... to show", command(experiment or table, overrides))
    return one_protocol(runs, columns, task=task, several=several, times=times)
