"""The runs of an experiment file, so that a table can say which of them are missing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from sq.analysis.asked import made_by
from sq.analysis.results import MissingRuns, settings, summary
from sq.config.compose import compose_jobs
from sq.config.parse import CONF, as_config, options
from sq.errors import ConfigError, DataError
from sq.runs.references import reference
from sq.runs.runid import run_id


def expected(experiment: str, overrides: Sequence[str] = ()) -> pd.DataFrame:
    """One row of status "missing" for each run of `python run.py -m experiment=<experiment> <overrides>`, in its order.

    Columns are those of `sq.analysis.results.load` that are known before a run is made; run ids are the names of run
    directories. Only configs are read.

    Raises:
        DataError: no such experiment.
        ConfigError: overrides that run.py would refuse.
    """
    rows = _rows(experiment, tuple(overrides))
    if isinstance(rows, ConfigError):
        raise rows
    return pd.DataFrame(list(rows))


def with_missing(frame: pd.DataFrame, experiment: str, overrides: Sequence[str] = ()) -> pd.DataFrame:
    """All runs of the frame, then rows of status "missing" for the experiment's runs that were not made, and of status
    "damaged" for those whose result.json cannot be read."""
    wanted = expected(experiment, overrides)
    missing = wanted[~wanted["run_id"].isin(frame["run_id"])].copy()
    for name, reason in frame.attrs.get("unreadable", {}).items():
        missing.loc[missing["run_id"] == name, ["status", "error"]] = ["damaged", reason]
    return pd.concat([frame, missing], ignore_index=True) if len(missing) else frame


def of_experiment(frame: pd.DataFrame, experiment: str, overrides: Sequence[str] = ()) -> pd.DataFrame:
    """The experiment's runs alone, missing ones as such, in the order of its sweep.

    Where its configs cannot be composed, since its model lies on another machine say, they are the runs that its
    commands made, and attrs["uncomposed"] says why: what else it has cannot be told.

    Raises:
        MissingRuns: the frame has none of them.
        DataError, ConfigError: as in `expected`.
    """
    reason, runs = "", frame
    try:
        names = list(expected(experiment, overrides)["run_id"])
        runs = with_missing(frame, experiment, overrides)
    except ConfigError as error:
        names, reason = made_by(frame, experiment, overrides), error.problems[0]
        if not names:
            raise
    order = {name: place for place, name in enumerate(names)}
    runs = runs[runs["run_id"].isin(order)]
    if (runs["status"] == "missing").all():
        raise MissingRuns(f"no run of {experiment} is there", command(experiment, overrides))
    runs = runs.sort_values("run_id", key=lambda ids: ids.map(order), kind="stable", ignore_index=True)
    runs.attrs["uncomposed"] = reason
    return runs


def command(experiment: str, overrides: Sequence[str] = ()) -> str:
    """The command in the first line of an experiment's file, with overrides behind it.

    Raises:
        DataError: no such experiment.
    """
    path = CONF / "experiment" / f"{experiment}.yaml"
    if not path.is_file():
        raise DataError(f"experiment={experiment}; allowed: {', '.join(options('experiment'))}")
    first = next(line for line in path.read_text(encoding="utf-8").splitlines() if "python run.py" in line)
    return " ".join([first.lstrip("# "), *overrides])


@lru_cache(maxsize=64)  # composing takes 0.02 s a job
def _rows(experiment: str, overrides: tuple[str, ...]) -> tuple[dict[str, Any], ...] | ConfigError:
    """Rows of `expected`; an error is a value, so that it is kept too."""
    command(experiment)  # raises for an unknown experiment
    rows: dict[str, dict[str, Any]] = {}
    try:
        jobs = compose_jobs([f"experiment={experiment}", *overrides], multirun=True)
    except ConfigError as error:
        return error
    for job in jobs:
        for one in [*(reference(job, name) for name in job.reference_methods), job]:
            config = as_config(one)
            name = run_id(one)
            rows.setdefault(
                name, {"run_id": name, "status": "missing", "error": None, **summary(config), **settings(config)}
            )
    return tuple(rows.values())
