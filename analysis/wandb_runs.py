"""Runs of a W&B project as the frame that run directories give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sq.analysis.results import machine, settings, summary
from sq.errors import DataError
from sq.runs.results import shown_method

OWN = ("status", "error", "result")  # what sq.runs.trackers writes beside the metrics
IN_WORK = ("_", "training/", "layer/")  # W&B's own names, and numbers that came while the run worked


def load_wandb(project: str, entity: str | None = None, api: Any = None) -> pd.DataFrame:
    """One row a run, with the columns of `sq.analysis.results.load`; of runs logged twice, the newest.

    Columns that W&B does not store are empty: the run directory ("folder", and with it the values by window), the
    fingerprints, the commit and the command. A W&B run without a status was cut off before its result was logged; it
    gives no row, like a directory without result.json.

    Args:
        project: name of the project, as in `tracker.project`.
        entity: whose; None = the account's default.
        api: a `wandb.Api`; None makes one, which needs network and an account.

    Raises:
        DataError: the project cannot be read, or holds no run of this package.
    """
    path = f"{entity}/{project}" if entity else project
    try:
        if api is None:
            import wandb

            api = wandb.Api()
        rows = [_row(run) for run in api.runs(path) if "run_id" in run.config and "status" in dict(run.summary)]
    except Exception as error:  # W&B raises its own classes, ValueError and those of its network library
        raise DataError(
            f"W&B project {path} cannot be read ({type(error).__name__}: {error}); check its name and `wandb login`"
        ) from error
    if not rows:
        raise DataError(f"W&B project {path} holds no run of this package; make some with tracker=online")
    frame = pd.DataFrame(rows).sort_values("created", kind="stable")
    return frame.drop_duplicates("run_id", keep="last", ignore_index=True)


def _row(run: Any) -> dict[str, Any]:
    config = dict(run.config)
    resolved, packs = config.pop("resolved", None) or {}, config.pop("arithmetic", "fake")
    config |= config.pop("settings", {})  # of a W&B sweep's run, whose swept names are locked to what was swept
    logged: Mapping[str, Any] = dict(run.summary)
    metrics = {key: value for key, value in logged.items() if key not in OWN and not key.startswith(IN_WORK)}
    first = {"run_id": config["run_id"], "status": logged["status"], "error": logged.get("error")}
    then = {"created": str(run.created_at), "git_commit": None, "command": None, "folder": None, **metrics}
    then["arithmetic"] = packs
    then["shown_method"] = shown_method(config["method"]["name"], resolved)
    return {**first, **summary(config), **then, **machine(config.get("environment") or {}), **settings(config)}
