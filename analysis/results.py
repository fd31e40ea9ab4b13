"""Run directories as one tidy pandas frame."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from sq.errors import DataError, FileError
from sq.formats.labels import parse_bits
from sq.io import read_json
from sq.runs.results import INTERRUPTED, RESULT, WINDOWS, examine

CONFIG = "config.yaml"  # of every run directory, written first
MACHINE = ("cpu", "gpu", "threads")  # what times depend on
FIELDS = ("run_id", "status", "error", "model", "method", "bits", "weights", "activations", "seed", "created")


class MissingRuns(DataError):
    """The runs that a table or figure shows have not been made.

    Args:
        what: the runs that are not there.
        command: makes them.
    """

    def __init__(self, what: str, command: str) -> None:
        self.what, self.command = what, command
        super().__init__(f"{what}; `{command}` makes the runs")


def load(results: str | Path = "runs") -> pd.DataFrame:
    """One row a run, failed ones with their error: the fields of result.json, its metrics, its settings; oldest first.

    Settings are named as on the command line ("method.placement", "calibration.tokens"). "fingerprint/<text>" and
    "fingerprint/calibration" identify the tokens that were read, "environment.cpu", ".gpu" and ".threads" the machine,
    and "folder" is the run directory. A directory without result.json (a run that was cut off) gives no row;
    `sq.analysis.with_missing` adds rows for the runs that an experiment still lacks.

    A run that is not what was written (`sq.runs.results.examine`) has the status "damaged", and the reason as its
    error; one whose result.json cannot be read at all has no row, and is in frame.attrs["unreadable"], name -> reason.
    Of run directories without result.json, frame.attrs["interrupted"] has those that say what cut them off, name ->
    reason, and frame.attrs["unfinished"] the names of the others: they go on, or were killed.

    Raises:
        DataError: the folder does not exist or holds no run.
    """
    folder = Path(results)
    found = {path: examine(path) for path in sorted(folder.glob("*")) if path.is_dir()}
    rows = [
        {
            **{name: getattr(result, name) for name in (*FIELDS, "arithmetic", "git_commit", "command")},
            "folder": path,
            **result.metrics,
            "shown_method": result.shown_method,
            **_fingerprints(result.extras),
            **machine(result.environment),
            **settings(result.config),
            **({} if wrong is None else {"status": "damaged", "error": wrong}),
        }
        for path, (result, wrong) in found.items()
        if result is not None
    ]
    undone = [path for path in found if not (path / RESULT).exists() and (path / CONFIG).is_file()]
    interrupted = {path.name: why for path in undone if (why := cut_off(path)) is not None}
    unfinished = [path.name for path in undone if path.name not in interrupted]
    unreadable = {path.name: wrong for path, (result, wrong) in found.items() if result is None and wrong is not None}
    if not rows:
        beside = "".join(f"; {name}: {reason}" for name, reason in (unreadable | interrupted).items())
        raise DataError(
            f"{folder} holds no finished run; make some with `python run.py paths.results={folder}`{beside}"
        )
    frame = pd.DataFrame(rows).sort_values("created", kind="stable", ignore_index=True)
    frame.attrs |= {"unreadable": unreadable, "interrupted": interrupted, "unfinished": unfinished}
    return frame


def cut_off(folder: Path) -> str | None:
    """By what, when and where a run without result.json was cut off; None where its directory does not say so."""
    try:
        said = read_json(folder / INTERRUPTED)
        by, at, host, command = (said[key] for key in ("by", "at", "host", "command"))
    except (FileError, KeyError, TypeError):
        return None
    cause = "Ctrl-C" if by == "KeyboardInterrupt" else by
    return f"by {cause} at {str(at)[:16].replace('T', ' ')} UTC on {host}; it goes on with `{command}`"


def window_values(run: pd.Series, name: str) -> np.ndarray:
    """Values by window of one run, such as "kl/embedded", for paired comparisons.

    Raises:
        DataError: the run kept none of that name.
    """
    path = Path(run["folder"]) / WINDOWS
    if not path.is_file():
        raise DataError(f"{path} is missing: run {run['run_id']} kept no values by window")
    try:
        with np.load(path) as arrays:
            if name not in arrays:
                raise DataError(f"{path} has no {name!r}; it has {', '.join(arrays)}")
            values: np.ndarray = arrays[name]
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({error}): make run {run['run_id']} again with force=true") from error
    return values


def chosen(runs: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Runs whose columns have the given values, compared as text ("null" = no value) whatever the case of letters.

    Raises:
        DataError: a column that no run has.
    """
    for column, value in columns.items():
        if column not in runs:
            raise DataError(f"no run has a setting {column!r}; columns: {', '.join(map(str, runs.columns))}")
        runs = runs[np.array([as_text(found).lower() == value.lower() for found in runs[column]], dtype=bool)]
    return runs


def as_text(value: Any) -> str:
    """A setting as typed; a missing value elsewhere makes floats of a column of integers: 128.0 is 128."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "null"
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    return str(value).removesuffix(".0")


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings of all groups; seed and force, which stand above them, are no columns here."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key != "environment":
            found |= _dotted(value, f"{key}.")
    return found


def _dotted(section: Mapping[str, Any], above: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _dotted(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found


def summary(config: Mapping[str, Any]) -> dict[str, Any]:
    """The columns model to seed of a whole config, named as `sq.runs.experiment` writes them into result.json."""
    quantizes = bool(config["method"]["quantizes"])
    return {
        "model": config["model"]["name"],
        "method": config["method"]["name"],
        "bits": parse_bits(config["bits"]).label,
        "weights": config["weights"]["name"] if quantizes else "none",
        "activations": config["activations"]["name"] if quantizes else "none",
        "seed": config["seed"],
    }


def machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The machine's columns of a run's environment."""
    found = {name: environment.get(name) for name in MACHINE}
    return {
        f"environment.{name}": ", ".join(value) if isinstance(value, list) else value for name, value in found.items()
    }


def _fingerprints(extras: Mapping[str, Any]) -> dict[str, Any]:
    found = {**(extras.get("texts") or {}), "calibration": extras.get("calibration")}
    return {f"fingerprint/{text}": value for text, value in found.items() if value is not None}
