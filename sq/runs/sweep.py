"""What a Hydra job does, and the record of a sweep, which survives failed jobs, Ctrl-C and dead workers."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from sq.config.parse import CONF, parse
from sq.config.settings import ExperimentSettings
from sq.errors import ConfigError, FileError, SQError
from sq.io import read_json, write_json
from sq.runs.environment import command
from sq.runs.experiment import Busy, experiment
from sq.runs.interrupt import heed_sigterm
from sq.runs.results import Result, examine
from sq.runs.results_table import print_results

log = logging.getLogger(__name__)
INTERRUPTED = 130  # the exit status of a command ended by Ctrl-C or SIGTERM
SWEEP = "sweep.json"  # the command of a sweep and when it started
WAITING = "waiting"  # in the record of a job: it left runs to other hosts
BEST = "optimization_results.yaml"  # what Hydra's Optuna sweeper found

Objective: TypeAlias = float | list[float] | None
_started = datetime.now(timezone.utc)


class SweepRecord(Callback):
    """Remembers the folder of the running sweep's record, which `python run.py` prints when the sweep ends."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SweepRecord.folder = Path(config.hydra.sweep.dir)
        SweepRecord.folder.mkdir(parents=True, exist_ok=True)
        started = datetime.now(timezone.utc).isoformat()  # for the jobs, whichever process runs them
        write_json(SweepRecord.folder / SWEEP, {"command": command(), "started": started})


def job(cfg: DictConfig) -> Objective:
    """A Hydra job. A single run prints its table and ends the process; a sweep's job writes its record and returns the
    metrics of `objective`, None where they are missing. Without a launcher, runs that another host of the same sweep is
    measuring are left for the end (`finish_waiting`), so that hosts share the work."""
    configure_logging()
    heed_sigterm()
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        os.chdir(hydra.runtime.cwd)  # a cluster's worker starts elsewhere; paths are relative to the command's folder
        wait = hydra.runtime.choices["hydra/launcher"] != "basic"
        return _sweep_job(cfg, Path(hydra.sweep.dir), int(hydra.job.num), list(hydra.overrides.task), wait=wait)
    sys.exit(_single(cfg))


def _single(cfg: DictConfig) -> int:
    results: list[Result] = []
    status = 0
    try:
        settings = parse(cfg)
        for result in experiment(settings, since=_started):
            results.append(result)
    except KeyboardInterrupt as end:
        print(f"interrupted{_by(end)}: what is finished stays", file=sys.stderr)
        status = INTERRUPTED
    except SQError as error:  # a file that cannot be read for the run's id: others are errors of a result
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:  # the run directory cannot be written: an error of the measurement does not arrive here
        print(f"{settings.paths.results}: {error}; choose another folder with paths.results=", file=sys.stderr)
        status = 1
    if results:
        print_results(results)
        print(f"run directory: {settings.paths.results / results[-1].run_id}")
    return status or int(any(result.status == "failed" for result in results))


def _sweep_job(cfg: DictConfig, folder: Path, number: int, overrides: list[str], *, wait: bool) -> Objective:
    started = datetime.fromisoformat(read_json(folder / SWEEP)["started"])
    result: Result | None = None
    settings: ExperimentSettings | None = None
    record: dict[str, Any] = {"overrides": overrides, "runs": [], "error": None}
    log.info("job %d: %s", number, " ".join(overrides))
    try:
        settings = parse(cfg)
        wait = wait or bool(settings.objective)  # a search goes on from what the job returns
        for result in experiment(settings, group=folder.name, since=started, wait=wait):
            record["runs"].append(str(Path(cfg.paths.results).expanduser().absolute() / result.run_id))
            write_json(folder / f"job-{number:05d}.json", record)
        return None if result is None else objective(result, settings.objective)
    except Busy as others:
        log.info("job %d: %s is measured elsewhere: left for the end", number, others)
        with suppress(OSError):
            write_json(folder / f"job-{number:05d}.json", {**record, WAITING: True})
        return None
    except (KeyboardInterrupt, SystemExit) as end:  # SystemExit: submitit queues the job again
        record["error"] = f"interrupted{_by(end)}; the same command goes on from here"
        with suppress(OSError):
            write_json(folder / f"job-{number:05d}.json", record)
        raise
    except Exception as error:
        log.error("job %d failed: %s", number, error)
        record.update(error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        with suppress(OSError):  # a full disk must not stop the jobs that follow
            write_json(folder / f"job-{number:05d}.json", record)
        return None


def finish_waiting(folder: Path) -> None:
    """Take the runs that other hosts measured while the sweep went on; wait for them, and take up what is lost."""
    GlobalHydra.instance().clear()
    for path in sorted(folder.glob("job-*.json")):
        try:
            record = read_json(path)
        except FileError:
            continue  # `finish_sweep` tells of it
        if record.get(WAITING):
            number, overrides = int(path.stem.removeprefix("job-")), record["overrides"]
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("config", overrides)
            _sweep_job(cfg, folder, number, overrides, wait=True)


def objective(result: Result, names: Sequence[str]) -> Objective:
    """What a sweeper reads of a run: one number, or a list where several are wanted; None where one is missing."""
    found = [number for name in names if (number := result.metrics.get(name)) is not None]
    if not names or result.status != "finished" or len(found) < len(names):
        return None
    return found[0] if len(found) == 1 else found


def _by(end: BaseException) -> str:
    return " by SIGTERM" if str(end) == "SIGTERM" else ""


def finish_sweep(folder: Path, *, interrupted: bool) -> int:
    """Print the table of all results of a sweep and the errors of its jobs; return the exit status of the process."""
    results: list[Result] = []
    problems: list[str] = []
    for path in sorted(folder.glob("job-*.json")):
        try:
            record = read_json(path)
        except FileError as error:
            problems.append(str(error))
            continue
        for place in map(Path, record["runs"]):
            result, wrong = examine(place)
            if result is not None:
                results.append(result)
            else:
                problems.append(f"{place}: {wrong or 'the result is gone'}")
        if record["error"]:
            problems.append(f"{' '.join(record['overrides'])}: {record['error']}")
    if interrupted:
        print("interrupted: what is finished stays, and the same command goes on from here", file=sys.stderr)
    if results:
        print_results(results, title=f"sweep {folder.name}")
    for problem in problems:
        print(problem, file=sys.stderr)
    if (best := folder / BEST).is_file():
        print(f"best of the search ({best}):\n{best.read_text(encoding='utf-8').rstrip()}")
    if interrupted:
        return INTERRUPTED
    return int(bool(problems) or any(result.status == "failed" for result in results))


def configure_logging() -> None:
    """Print this package's log messages to stderr, and none of other packages; a second call changes nothing."""
    logging.raiseExceptions = False  # a log that cannot be written (a full disk) is no reason for a traceback
    package = logging.getLogger("sq")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setLevel(logging.INFO)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        package.propagate = False
