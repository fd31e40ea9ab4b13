"""Hand-written run directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sq.runs.results import SCHEMA


def _write_run(
    folder: Path,
    method: str,
    weights: str,
    kl: list[float],
    outliers: str = "planted",
    metrics: dict[str, float] | None = None,
    training: dict[str, int] | None = None,
    **fields: Any,
) -> None:
    run = folder / f"tiny-{method}-{weights}-{outliers}-{'-'.join(map(str, (*fields.values(), training)))}"
    run.mkdir(parents=True)
    own = {
        "order": ["hadamard", "urt"], "art_steps": 8, "urt_target": "kurtosis", "urt_sweeps": 2, "balance": True,
        "rank": 16, "mixing": "none", "kronecker": True, "placement": "folded",
    }  # fmt: skip
    record = {
        "schema": SCHEMA, "run_id": run.name, "identity": "x", "status": "finished",
        "created": "2026-01-01T00:00:00+00:00", "command": "", "git_commit": None, "environment": {}, "model": "tiny",
        "method": method, "bits": "W4A4KV16", "weights": weights, "activations": "symmetric", "seed": 0,
        "config": {
            "seed": 0, "method": {**own, **(training or {})}, "model": {"outliers": outliers},
            "task": {"name": "perplexity" if kl else "none", "perplexity": {"count": 128}},
            "calibration": {"tokens": 4096},
        },
        "extras": {}, "seconds": 1.0, "error": None, "traceback": None,
        "metrics": {**(metrics or {}), "transform/multiply_adds": 344064}, **fields,
    }  # fmt: skip
    if kl:
        record["metrics"]["kl/embedded"] = float(np.mean(kl))
    (run / "result.json").write_text(json.dumps(record))
    np.savez(run / "windows.npz", **{"kl/embedded": np.array(kl)})


@pytest.fixture
def write_run() -> Callable[..., None]:
    return _write_run
