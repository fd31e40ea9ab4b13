"""Send a finished run to W&B. Its run directory is complete by then, and no error of W&B can damage it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from sq.config.settings import TrackerSettings
from sq.runs.results import Result

log = logging.getLogger(__name__)

# These keep W&B from collecting what result.json already has. Measured on two cores: the import and the first run take
# 1.8 s with W&B's defaults and 1.0 s with these settings; each later run takes 0.02 s.
QUIET: dict[str, Any] = {
    "silent": True,
    "quiet": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "init_timeout": 30.0,
}


def under_agent() -> bool:
    """Whether the agent of a W&B sweep started this process; the agent waits for one run, whose id it has chosen."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def track(tracker: TrackerSettings, result: Result, *, group: str | None = None) -> bool:
    """Log one finished or failed result: config, metrics, table row and status; return whether W&B accepted it.

    Every error of W&B, of the network and of W&B's folder (a full disk, for example) becomes one warning.

    Args:
        tracker: `name` none does nothing; offline writes below `dir`; online needs an account.
        result: the run.
        group: the sweep's name, used where the tracker names no group.
    """
    if tracker.name == "none":
        return False
    try:
        with _wandb_run(tracker, result, group) as run:
            run.log({key: value for key, value in result.metrics.items() if value is not None})
            run.log({"result": _table(result)})
            run.summary["status"] = result.status
            if result.error:
                run.summary["error"] = result.error
    except Exception as error:  # its own classes, OSError of its folder, errors of protobuf and of the network
        where = f" in {tracker.dir}" if tracker.dir else ""
        log.warning(
            "W&B (tracker=%s) did not take %s%s: %s: %s. The result itself is safe in its run directory; "
            "tracker=none leaves W&B out.",
            tracker.name,
            result.run_id,
            where,
            type(error).__name__,
            " ".join(str(error).split()) or "no reason given",
        )
        return False
    return True


@contextmanager
def _wandb_run(tracker: TrackerSettings, result: Result, group: str | None) -> Iterator[Any]:
    """An open W&B run that is always closed and prints nothing."""
    if tracker.dir is not None:
        tracker.dir.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        resolved = result.extras.get("resolved") or {}
        config = {**result.config, "run_id": result.run_id, "environment": result.environment, "resolved": resolved}
        config["arithmetic"] = result.arithmetic
        if under_agent():
            config["settings"] = result.config  # W&B locks the keys of its sweep: there `method` is a name
        known = wandb.Settings.model_fields
        with wandb.init(
            mode="offline" if tracker.name == "offline" else "online",
            project=tracker.project,
            entity=tracker.entity,
            group=tracker.group or group,
            tags=list(tracker.tags) or None,
            name=result.run_id,
            dir=str(tracker.dir) if tracker.dir else None,
            config=config,
            settings=wandb.Settings(**{key: value for key, value in QUIET.items() if key in known}),
        ) as run:
            yield run


def _table(result: Result) -> Any:
    """The result as a W&B table of one row."""
    import wandb

    columns = ["run_id", "model", "method", "bits", "weights", "activations"]
    row = {name: getattr(result, name) for name in columns} | dict(sorted(result.metrics.items()))
    return wandb.Table(columns=list(row), data=[list(row.values())])
