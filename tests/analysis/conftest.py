"""Hand-written run directories, and real ones of the fake executor."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sq.config.compose import compose_jobs
from sq.runs.experiment import experiment
from sq.runs.results import SCHEMA
from tests.run_files import write_record


def _write_run(
    folder: Path,
    method: str,
    weights: str,
    kl: list[float],
    outliers: str = "planted",
    metrics: dict[str, float] | None = None,
    training: dict[str, int] | None = None,
    config: dict[str, dict[str, Any]] | None = None,
    arrays: dict[str, list[float]] | None = None,
    **fields: Any,
) -> Path:
    """A run directory with KL by window (none: nothing is evaluated); `config` replaces groups, `fields` fields."""
    told = re.sub(r"\W+", "_", "-".join(map(str, (*fields.values(), training, config))))[:99]
    run = folder / f"tiny-{method}-{weights}-{outliers}-{told}"
    run.mkdir(parents=True)
    own = {
        "order": ["hadamard", "urt"], "art_steps": 8, "urt_target": "kurtosis", "urt_sweeps": 2, "balance": True,
        "rank": 16, "mixing": "none", "kronecker": True, "placement": "folded",
    }  # fmt: skip
    evaluated = {"name": "perplexity", "perplexity": {"count": 128}}
    record = {
        "schema": SCHEMA, "run_id": run.name, "identity": "x", "status": "finished",
        "created": "2026-01-01T00:00:00+00:00", "command": "", "git_commit": None, "environment": {}, "model": "tiny",
        "method": method, "bits": "W4A4KV16", "weights": weights, "activations": "symmetric", "seed": 0,
        "config": {
            "seed": 0, "method": {**own, **(training or {})}, "model": {"path": "embedded", "outliers": outliers},
            "task": evaluated if kl or "error" in fields else {"name": "none"},
            "calibration": {"tokens": 4096}, **(config or {}),
        },
        "extras": {}, "seconds": 1.0, "error": None, "traceback": None,
        "metrics": {**(metrics or {}), "transform/multiply_adds": 344064}, **fields,
    }  # fmt: skip
    if kl:
        record["metrics"]["kl/embedded"] = float(np.mean(kl))
    np.savez(run / "windows.npz", **{"kl/embedded": np.array(kl), **(arrays or {})})
    write_record(run, record)
    return run


@pytest.fixture
def write_run() -> Callable[..., Path]:
    return _write_run


@pytest.fixture
def sweep(tmp_path: Path, fake_executor: str) -> Callable[..., Path]:
    """Makes the runs of a command line with the fake executor; returns their results folder."""

    def make(*overrides: str) -> Path:
        results = tmp_path / "runs"
        for settings in compose_jobs([*overrides, f"executor='{fake_executor}'", f"paths.results={results}"]):
            list(experiment(settings))
        return results

    return make
