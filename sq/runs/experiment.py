"""Run what was asked for, after the methods it is compared with; reuse what is finished; keep every failure."""

from __future__ import annotations

import logging
import pkgutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from omegaconf import OmegaConf

from sq.config.parse import as_config
from sq.config.settings import ExperimentSettings
from sq.io import jsonable, write_arrays, write_text
from sq.runs.environment import command, environment, git_commit
from sq.runs.locks import lock
from sq.runs.references import reference
from sq.runs.results import ACTIVATIONS, RESULT, WINDOWS, Executor, Result, read_result
from sq.runs.runid import identity, run_id
from sq.runs.tracking import track, under_agent

log = logging.getLogger(__name__)


def experiment(
    settings: ExperimentSettings, *, group: str | None = None, since: datetime | None = None
) -> Iterator[Result]:
    """Yield the result of each reference method, then of the run asked for, as they finish.

    Args:
        settings: the run asked for.
        group: the sweep's name for the tracker.
        since: results made after this moment count whatever they are: under `force` a sweep's references are made once,
            and one that failed is not tried again by every job.
    """
    seen = set()
    wanted = [reference(settings, name) for name in settings.reference_methods]
    if under_agent():
        wanted = [replace(one, tracker=replace(one.tracker, name="none")) for one in wanted]
    for one in [*wanted, settings]:
        if (name := run_id(one)) in seen:
            continue
        seen.add(name)
        yield run(one, group=group, since=since)


def run(settings: ExperimentSettings, *, group: str | None = None, since: datetime | None = None) -> Result:
    """One run: reused where it is finished, else measured, written, and then told to the tracker.

    A W&B sweep's agent has asked for a run of its own and is told of a reused one too.

    A run that raises is a result too: status "failed" with its error and traceback. KeyboardInterrupt passes through
    and leaves the run directory without result.json.

    Raises:
        OSError: the run directory cannot be written.
    """
    name = run_id(settings)
    folder = settings.paths.results / name
    if (found := _finished(folder, settings, since)) is not None:
        if under_agent():
            track(settings.tracker, found, group=group)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    asked = datetime.now(timezone.utc)
    with lock(folder / ".lock"):
        # Another worker may have finished it while this one waited; what it made is new enough even under `force`.
        if (found := _finished(folder, settings, since or asked)) is not None:
            return found
        log.info("%s: running", name)
        result = _measure(settings, name, folder)
    track(settings.tracker, result, group=group)
    return result


def _finished(folder: Path, settings: ExperimentSettings, since: datetime | None) -> Result | None:
    result = read_result(folder)
    if result is None or result.identity != identity(settings):
        return None
    fresh = since is not None and datetime.fromisoformat(result.created) >= since
    if not fresh and (settings.force or result.status != "finished"):
        return None
    if settings.save_to is not None and not (settings.save_to / "config.json").is_file():
        return None  # measured before, but its checkpoint is elsewhere
    if result.status == "finished" and settings.task.activations and not (folder / ACTIVATIONS).is_file():
        return None
    log.info("%s: %s", result.run_id, "reused" if result.status == "finished" else "failed already")
    return result


def _measure(settings: ExperimentSettings, name: str, folder: Path) -> Result:
    """Execute and write everything of the run directory; result.json comes last, so a folder with one is complete."""
    for stale in [*(folder / name for name in (RESULT, WINDOWS, ACTIVATIONS)), *folder.glob(".*.tmp")]:
        stale.unlink(missing_ok=True)
    config = as_config(settings)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    result = Result(
        run_id=name,
        identity=identity(settings),
        status="finished",
        created="",
        command=command(),
        git_commit=git_commit(),
        environment={},
        model=settings.model.name,
        method=settings.method.name,
        bits=settings.bits.label,
        weights=settings.weights.name if settings.method.quantizes else "none",
        activations=settings.activations.name if settings.method.quantizes else "none",
        seed=settings.seed,
        config=config,
        metrics={},
    )
    start = time.perf_counter()
    with _log_file(folder / "log.txt"):
        try:
            executor: Executor = pkgutil.resolve_name(settings.executor)
            done = executor(settings, folder)
            if done.arrays:
                write_arrays(folder / WINDOWS, done.arrays)
            result = replace(result, metrics=jsonable(dict(done.metrics)), extras=jsonable(dict(done.extras)))
        except Exception as error:
            text = traceback.format_exc()
            log.error("%s: failed: %s: %s", name, type(error).__name__, error)
            log.debug("%s", text)
            result = replace(result, status="failed", error=f"{type(error).__name__}: {error}", traceback=text)
    result = replace(
        result,
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        environment=jsonable(environment()),
        seconds=round(time.perf_counter() - start, 3),
    )
    result.write(folder)
    return result


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything logged by this package, tracebacks included, goes into the run's log.txt as well."""
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.DEBUG)
    package = logging.getLogger("sq")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()
