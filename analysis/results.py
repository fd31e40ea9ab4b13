"""Run directories as one tidy pandas frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sq.errors import DataError
from sq.runs.results import read_result


def load(results: str | Path = "runs") -> pd.DataFrame:
    """One row a run, failed ones too: the fields of result.json, then its metrics and its settings as columns.

    Settings are named as on the command line ("method.placement", "calibration.tokens"); the column "folder" leads to
    the run directory.

    Raises:
        DataError: the folder does not exist or holds no run.
    """
    folder = Path(results)
    found = [(path, read_result(path)) for path in sorted(folder.glob("*")) if path.is_dir()]
    rows = [
        {
            "run_id": result.run_id,
            "status": result.status,
            "error": result.error,
            "model": result.model,
            "method": result.method,
            "bits": result.bits,
            "weights": result.weights,
            "activations": result.activations,
            "seed": result.seed,
            "created": result.created,
            "git_commit": result.git_commit,
            "folder": path,
            **result.metrics,
            **_settings(result.config),
        }
        for path, result in found
        if result is not None
    ]
    if not rows:
        raise DataError(f"{folder} holds no finished run; make some with `python run.py paths.results={folder}`")
    return pd.DataFrame(rows)


def window_values(run: pd.Series, name: str) -> np.ndarray:
    """Values by window of one run, such as "kl/embedded", for paired comparisons.

    Raises:
        DataError: the run kept none of that name.
    """
    path = Path(run["folder"]) / "windows.npz"
    if not path.is_file():
        raise DataError(f"{path} is missing: run {run['run_id']} kept no values by window")
    with np.load(path) as arrays:
        if name not in arrays:
            raise DataError(f"{path} has no {name!r}; it has {', '.join(arrays)}")
        values: np.ndarray = arrays[name]
    return values


def chosen(runs: pd.DataFrame, settings: Mapping[str, str]) -> pd.DataFrame:
    """Runs whose columns have the given values, compared as text.

    Raises:
        DataError: a column that no run has.
    """
    for column, value in settings.items():
        if column not in runs:
            raise DataError(f"no run has a setting {column!r}; columns: {', '.join(map(str, runs.columns))}")
        # A missing value elsewhere turns a column of integers into floats: 128 and 128.0 are the same setting.
        runs = runs[runs[column].astype(str).str.removesuffix(".0") == value]
    return runs


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted settings of all groups; seed and force, which stand above them, are no columns here."""
    groups = {key: value for key, value in config.items() if isinstance(value, dict)}
    return {str(key): value for key, value in pd.json_normalize(groups).iloc[0].items()}
