"""Run the reference methods and then the run itself; reuse finished results; keep every failure as a result."""

from __future__ import annotations

import logging
import pkgutil
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from socket import gethostname

from omegaconf import OmegaConf

from sq.checkpoint.manifest import damaged_files, run_of
from sq.config.parse import as_config
from sq.config.settings import ExperimentSettings, ModelSettings
from sq.errors import SQError
from sq.io import jsonable, write_arrays, write_json, write_text
from sq.models.place import is_hub_id, local_folder
from sq.runs.environment import command, environment, git_commit
from sq.runs.locks import lock
from sq.runs.references import reference
from sq.runs.results import (
    ACTIVATIONS,
    INTERRUPTED,
    RESULT,
    WINDOWS,
    Executor,
    Result,
    Tell,
    digests_of,
    lost_files,
    read_result,
)
from sq.runs.runid import arithmetic, identity, run_id
from sq.runs.tracking import opening_of, track, tracking, under_agent

log = logging.getLogger(__name__)


class Busy(Exception):
    """Another process is measuring a run."""


def experiment(
    settings: ExperimentSettings, *, group: str | None = None, since: datetime | None = None, wait: bool = True
) -> Iterator[Result]:
    """Yield the result of each reference method, then that of the run itself, as they finish.

    Args:
        settings: of the run.
        group: the sweep's name for the tracker.
        since: results made after this moment are reused whatever they are. So `force` measures the references of a
            sweep once, and the jobs of a sweep do not repeat a reference that failed.
        wait: for runs that other processes measure, instead of leaving them out.

    Raises:
        Busy: at the end, where runs were left out.
    """
    seen, busy = set(), []
    wanted = [reference(settings, name) for name in settings.reference_methods]
    if under_agent():
        wanted = [replace(one, tracker=replace(one.tracker, name="none")) for one in wanted]
    for one in [*wanted, settings]:
        if (name := run_id(one)) in seen:
            continue
        seen.add(name)
        try:
            result = run(one, group=group, since=since, wait=wait)
        except Busy:
            busy.append(name)
            continue
        yield result
    if busy:
        raise Busy(", ".join(busy))


def run(
    settings: ExperimentSettings, *, group: str | None = None, since: datetime | None = None, wait: bool = True
) -> Result:
    """One run: a finished result is reused; else the run is measured while the tracker follows it, and written.

    The agent of a W&B sweep waits for a run, so the tracker receives a reused result too. A run that raises is a
    result: status "failed" with its error and traceback. What ends the process (Ctrl-C, SIGTERM, a scheduler that
    queues the job again) passes through and leaves interrupted.json in the place of result.json.

    Raises:
        OSError: the run directory cannot be written.
        Busy: another process is measuring it, and `wait` is False.
    """
    _fetch(settings.model)
    name = run_id(settings)
    folder = settings.paths.results / name
    if (found := _finished(folder, settings, since)) is not None:
        if under_agent():
            track(settings.tracker, found, folder, group=group)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc)
    with ExitStack() as followed:  # the tracker is closed behind the lock: it may upload for long
        with _owned(folder, wait):
            # Another worker may have finished the run during the wait; its result is new enough even under `force`.
            if (found := _finished(folder, settings, since or now)) is not None:
                return found
            log.info("%s: running", name)
            opening = opening_of(name, as_config(settings), arithmetic(settings), group, git_commit())
            tracked = followed.enter_context(tracking(settings.tracker, opening))
            result = _measure(settings, name, folder, tracked.tell)
        tracked.finish(result, folder)
    return result


@contextmanager
def _owned(folder: Path, wait: bool) -> Iterator[None]:
    with ExitStack() as owned:
        try:
            owned.enter_context(lock(folder / ".lock", timeout_seconds=None if wait else 0))
        except TimeoutError as error:
            raise Busy(folder.name) from error
        yield


def _fetch(model: ModelSettings) -> None:
    """Have a model from the hub on this machine: its content decides the run's id."""
    if is_hub_id(model.path) and local_folder(model.path, model.revision) is None:
        from sq.models.source import model_folder  # torch, which the check of a command line does not need

        with suppress(SQError):  # the run that needs it fails with the reason
            model_folder(model.path, model.revision)


def _finished(folder: Path, settings: ExperimentSettings, since: datetime | None) -> Result | None:
    result = read_result(folder)
    if result is None or result.identity != identity(settings):
        return None
    fresh = since is not None and datetime.fromisoformat(result.created) >= since
    if not fresh and (settings.force or result.status != "finished"):
        return None
    if settings.save_to is not None and not _saved(settings.save_to, result.identity, settings.paths.cache):
        return None  # the run was measured before, without this checkpoint
    if result.status == "finished" and settings.task.activations and ACTIVATIONS not in result.files:
        return None
    if lost := lost_files(folder, result):
        log.warning("%s: %s missing or damaged: measuring again", result.run_id, ", ".join(lost))
        return None
    log.info("%s: %s", result.run_id, "reused" if result.status == "finished" else "failed already")
    return result


def _saved(folder: Path, identity: str, cache: Path) -> bool:
    """Whether this very run finished a packed folder, which is whole."""
    return run_of(folder) == identity and not damaged_files(folder, cache)


def _measure(settings: ExperimentSettings, name: str, folder: Path, tell: Tell) -> Result:
    """Measure a run and write its directory; result.json is the last file, so a folder that has one is complete."""
    for stale in [*(folder / name for name in (RESULT, WINDOWS, ACTIVATIONS, INTERRUPTED)), *folder.glob(".*.tmp")]:
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
        arithmetic=arithmetic(settings),
    )
    start = time.perf_counter()
    with _log_file(folder / "log.txt"):
        try:
            executor: Executor = pkgutil.resolve_name(settings.executor)
            done = executor(settings, folder, tell)
            if done.arrays:
                write_arrays(folder / WINDOWS, done.arrays)
            result = replace(result, metrics=jsonable(dict(done.metrics)), extras=jsonable(dict(done.extras)))
            result = replace(result, files=digests_of(folder))
        except Exception as error:
            text, reason = traceback.format_exc(), f"{type(error).__name__}: {error}"
            log.error("%s: failed: %s", name, reason)
            log.debug("%s", text)
            result = replace(result, status="failed", error=reason, traceback=text)
        except BaseException as end:
            by = "SIGTERM" if str(end) == "SIGTERM" else type(end).__name__
            log.error("%s: interrupted (%s)", name, by)
            ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
            write_json(folder / INTERRUPTED, {"by": by, "at": ended, "host": gethostname(), "command": command()})
            raise
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
    """Write all log messages of this package, tracebacks included, to the run's log.txt too."""
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
