"""The frame of runs and the ablation table, on hand-written run directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sq import analysis
from sq.analysis.ablation import ablation_table
from sq.analysis.results import window_values
from sq.errors import DataError


def test_ratios_are_those_of_the_window_values(tmp_path: Path, write_run: Callable[..., None]) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04, 0.06])
    write_run(tmp_path, "best", "rtn", [0.02, 0.03])
    table = ablation_table(tmp_path)
    row = next(line for line in table.splitlines() if line.startswith("| best"))
    assert "| 0.0250 | 0.500 (0.500-0.500) |" in row
    assert "hadamard, URT kurtosis x2 | diagonal + rank 16 | folded | 344,064" in row


def test_runs_under_other_settings_are_not_mixed_in(tmp_path: Path, write_run: Callable[..., None]) -> None:
    for outliers, factor in (("planted", 1.0), ("none", 0.5)):
        write_run(tmp_path, "hadamard", "rtn", [0.04 * factor, 0.06 * factor], outliers)
    assert "| 0.0500 | 1.000" in ablation_table(tmp_path)
    assert "| 0.0250 | 1.000" in ablation_table(tmp_path, **{"model.outliers": "none"})


def test_failed_runs_are_visible_in_the_frame_and_not_in_the_table(
    tmp_path: Path, write_run: Callable[..., None]
) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04])
    write_run(tmp_path, "broken", "rtn", [], status="failed", error="boom")
    frame = analysis.load(tmp_path)
    assert set(frame["status"]) == {"finished", "failed"}
    assert "broken" not in ablation_table(tmp_path)


def test_missing_rows_say_which_command_makes_them(tmp_path: Path, write_run: Callable[..., None]) -> None:
    write_run(tmp_path, "best", "rtn", [0.01])
    with pytest.raises(DataError, match=r"'hadamard'.*experiment=ablation"):
        ablation_table(tmp_path)
    with pytest.raises(DataError, match="no finished run"):
        analysis.load(tmp_path / "nothing")


def test_runs_on_different_windows_are_not_compared(tmp_path: Path, write_run: Callable[..., None]) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04, 0.06])
    write_run(tmp_path, "best", "rtn", [0.02])
    with pytest.raises(DataError, match="same windows"):
        ablation_table(tmp_path)


def test_missing_window_values_are_told(tmp_path: Path, write_run: Callable[..., None]) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04])
    run = analysis.load(tmp_path).iloc[0]
    with pytest.raises(DataError, match="nll/x"):
        window_values(run, "nll/x")
