"""Tell W&B about a finished run: its run directory is complete before W&B is touched, and W&B can do it no harm."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from sq.config.settings import TrackerSettings
from sq.runs.results import Result

log = logging.getLogger(__name__)

# What W&B would look up or sample on its own; result.json has it already. Measured on two cores: import and first run
# 1.8 s with W&B's defaults, 1.0 s with these, 0.02 s a run after that.
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
    """Whether the agent of a W&B sweep started this process: it waits for one run, under the id that it chose."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def track(tracker: TrackerSettings, result: Result, *, group: str | None = None) -> bool:
    """Log one result: config, metrics, the table row and the status; return whether W&B took it.

    Args:
        tracker: `name` none does nothing; offline writes below `dir`; online needs an account.
        result: a finished or failed run.
        group: the sweep's name, used where the tracker's own group is not set.

    Every error of W&B, of the network and of its folder (a full disk among them) becomes one warning.
    """
    if tracker.name == "none":
        return False
    try:
        with _wandb_run(tracker, result, group) as run:
            run.log({key: value for key, value in result.metrics.items() if value is not None})
            run.log({"result": _table([result])})
            run.summary["status"] = result.status
            if result.error:
                run.summary["error"] = result.error
    except Exception as error:  # whatever W&B raises: its own classes, OSError of its folder, protobuf, network
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
    """An open W&B run that is always closed, and says nothing on the console."""
    if tracker.dir is not None:
        tracker.dir.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        config = {**result.config, "run_id": result.run_id, "environment": result.environment}
        if under_agent():
            config["settings"] = result.config  # a sweep locks what it sweeps: `method` stays a name there
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


def _table(results: Sequence[Result]) -> Any:
    import wandb

    names = sorted({name for result in results for name in result.metrics})
    columns: list[str | int] = ["run_id", "model", "method", "bits", "weights", "activations", *names]
    rows: list[Any] = [
        [r.run_id, r.model, r.method, r.bits, r.weights, r.activations, *(r.metrics.get(name) for name in names)]
        for r in results
    ]
    return wandb.Table(columns=columns, data=rows)
