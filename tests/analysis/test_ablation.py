"""The frame of runs and the ablation table, on hand-written run directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sq import analysis
from sq.analysis.ablation import ablation_table
from sq.analysis.results import window_values
from sq.errors import DataError
from sq.runs.results import SCHEMA


def write_run(
    folder: Path, method: str, weights: str, kl: list[float], outliers: str = "planted", **fields: Any
) -> None:
    run = folder / f"tiny-{method}-{weights}-{outliers}"
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
            "seed": 0, "method": own, "model": {"outliers": outliers}, "task": {"perplexity": {"count": 128}},
        },
        "extras": {}, "seconds": 1.0, "error": None, "traceback": None,
        "metrics": {"kl/embedded": float(np.mean(kl)), "transform/multiply_adds": 344064}, **fields,
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(record))
    np.savez(run / "windows.npz", **{"kl/embedded": np.array(kl)})


def test_ratios_are_those_of_the_window_values(tmp_path: Path) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04, 0.06])
    write_run(tmp_path, "best", "rtn", [0.02, 0.03])
    table = ablation_table(tmp_path)
    row = next(line for line in table.splitlines() if line.startswith("| best"))
    assert "| 0.0250 | 0.500 (0.500-0.500) |" in row
    assert "hadamard, URT kurtosis x2 | diagonal + rank 16 | folded | 344,064" in row


def test_runs_under_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    for outliers, factor in (("planted", 1.0), ("none", 0.5)):
        write_run(tmp_path, "hadamard", "rtn", [0.04 * factor, 0.06 * factor], outliers)
    assert "| 0.0500 | 1.000" in ablation_table(tmp_path)
    assert "| 0.0250 | 1.000" in ablation_table(tmp_path, **{"model.outliers": "none"})


def test_failed_runs_are_visible_in_the_frame_and_not_in_the_table(tmp_path: Path) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04])
    write_run(tmp_path, "broken", "rtn", [0.01], status="failed", error="boom", metrics={})
    frame = analysis.load(tmp_path)
    assert set(frame["status"]) == {"finished", "failed"}
    assert "broken" not in ablation_table(tmp_path)


def test_missing_rows_say_which_command_makes_them(tmp_path: Path) -> None:
    write_run(tmp_path, "best", "rtn", [0.01])
    with pytest.raises(DataError, match=r"'hadamard'.*experiment=ablation"):
        ablation_table(tmp_path)
    with pytest.raises(DataError, match="no finished run"):
        analysis.load(tmp_path / "nothing")


def test_runs_on_different_windows_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04, 0.06])
    write_run(tmp_path, "best", "rtn", [0.02])
    with pytest.raises(DataError, match="same windows"):
        ablation_table(tmp_path)


def test_missing_window_values_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04])
    run = analysis.load(tmp_path).iloc[0]
    with pytest.raises(DataError, match="nll/x"):
        window_values(run, "nll/x")
