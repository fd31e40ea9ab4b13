"""MLflow: files in `<tracker.dir>/mlruns`, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sq.config.settings import TrackerSettings
from sq.runs.results import Result, flat
from sq.runs.trackers.tracker import End, Opening

ENDS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
MANY = 100  # params that one call may carry


class MlflowTracker:
    """A run of the experiment `tracker.project`."""

    def __init__(self, settings: TrackerSettings, opening: Opening) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports its use to its maker otherwise
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks for a word about plain files
        from mlflow import MlflowClient
        from mlflow.entities import Param

        folder = (settings.dir or Path.cwd()) / "mlruns"
        self.client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or folder.as_uri())
        found = self.client.get_experiment_by_name(settings.project)
        experiment = self.client.create_experiment(settings.project) if found is None else found.experiment_id
        tags = {f"tag.{tag}": "true" for tag in settings.tags}
        tags |= {"group": settings.group or opening.group or "", "mlflow.source.git.commit": opening.git_commit or ""}
        self.run = self.client.create_run(experiment, run_name=opening.name, tags=tags).info.run_id
        params = iter(Param(key, str(value)) for key, value in flat(dict(opening.config)).items())
        while some := list(islice(params, MANY)):
            self.client.log_batch(self.run, params=some)

    def numbers(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def result(self, result: Result) -> None:
        self.numbers("", 0, {name: value for name, value in result.metrics.items() if value is not None})
        for key, value in {"status": result.status, "error": result.error, "command": result.command}.items():
            if value is not None:
                self.client.set_tag(self.run, key, value)
        self.client.log_dict(self.run, result.environment, "environment.json")

    def files(self, name: str, kind: str, folder: Path, paths: Sequence[Path]) -> None:
        for path in paths:
            place = Path(kind, name, path.relative_to(folder)).parent.as_posix()
            self.client.log_artifact(self.run, str(path), place)

    def close(self, end: End) -> None:
        self.client.set_terminated(self.run, ENDS[end])
