"""W&B: curves and system metrics while the run goes on; offline into a local folder, or online with an account."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from sq.config.settings import TrackerSettings
from sq.runs.environment import SOURCE
from sq.runs.results import Result
from sq.runs.trackers.tracker import End, Opening

EXIT = {"finished": 0, "failed": 1, "interrupted": 130}
# result.json has the versions of packages, log.txt what is printed, and the code is in git.
LEFT_OUT = {"silent": True, "quiet": True, "console": "off", "disable_code": True, "x_save_requirements": False}


class WandbTracker:
    """A W&B run; offline it is a folder below `<tracker.dir>/wandb`, which `wandb sync` uploads."""

    def __init__(self, settings: TrackerSettings, opening: Opening) -> None:
        folder = settings.dir or Path.cwd()
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("DATA", "CACHE"):  # W&B stages files in the home folder otherwise
            os.environ.setdefault(f"WANDB_{part}_DIR", str(folder / "wandb" / part.lower()))
        with _silence():
            import wandb

            options: dict[str, Any] = {**LEFT_OUT, "init_timeout": 30.0}
            if (SOURCE.parent / ".git").exists():
                options["git_root"] = str(SOURCE.parent)
            known = wandb.Settings.model_fields
            self.run: Any = wandb.init(
                mode="offline" if settings.name == "offline" else "online",
                project=settings.project,
                entity=settings.entity,
                group=settings.group or opening.group,
                tags=list(settings.tags) or None,
                name=opening.name,
                dir=str(folder),
                config=dict(opening.config),
                settings=wandb.Settings(**{key: one for key, one in options.items() if key in known}),
                reinit="finish_previous",
            )
            for kind in ("training", "layer"):  # each has its own axis, and no place among the results
                self.run.define_metric(f"{kind}/step", hidden=True, summary="none")
                self.run.define_metric(f"{kind}/*", step_metric=f"{kind}/step", summary="none")

    def numbers(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, f"{kind}/step": step})

    def result(self, result: Result) -> None:
        resolved = result.extras.get("resolved") or {}
        self.run.config.update({"environment": result.environment, "resolved": resolved}, allow_val_change=True)
        self.run.log({key: value for key, value in result.metrics.items() if value is not None})
        self.run.log({"result": _table(result)})
        self.run.summary["status"] = result.status
        if result.error:
            self.run.summary["error"] = result.error

    def files(self, name: str, kind: str, folder: Path, paths: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        for path in paths:  # immutable: linked where they lie, not copied beside
            artifact.add_file(str(path), name=path.relative_to(folder).as_posix(), policy="immutable")
        self.run.log_artifact(artifact)
        pictures = {f"{kind}/{path.stem}": wandb.Image(str(path)) for path in paths if path.suffix == ".png"}
        if pictures:
            self.run.log(pictures)

    def close(self, end: End) -> None:
        with _silence():
            self.run.finish(exit_code=EXIT[end])


@contextmanager
def _silence() -> Iterator[None]:
    os.environ.setdefault("WANDB_SILENT", "true")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _table(result: Result) -> Any:
    """The result as a W&B table of one row."""
    import wandb

    columns = ["run_id", "model", "method", "bits", "weights", "activations"]
    row = {name: getattr(result, name) for name in columns} | dict(sorted(result.metrics.items()))
    return wandb.Table(columns=list(row), data=[list(row.values())])
