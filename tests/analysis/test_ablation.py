"""The table of recipes, on hand-written run directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sq import analysis
from sq.analysis import MissingRuns
from sq.analysis.tables import table_ablation
from sq.errors import DataError

Write = Callable[..., Path]


def text(folder: Path, **columns: str) -> str:
    return table_ablation(analysis.load(folder), experiment=None, **columns).markdown()


def test_ratios_are_those_of_the_window_values(tmp_path: Path, write_run: Write) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04, 0.06])
    write_run(tmp_path, "best", "rtn", [0.02, 0.03])
    row = next(line for line in text(tmp_path).splitlines() if line.startswith("| best"))
    assert "| 0.0250 | 0.500 (0.500-0.500) |" in row
    assert "hadamard, URT kurtosis x2 | diagonal + rank 16 | folded | 344,064" in row


def test_runs_under_other_settings_are_not_mixed_in(tmp_path: Path, write_run: Write) -> None:
    for outliers, factor in (("planted", 1.0), ("none", 0.5)):
        write_run(tmp_path, "hadamard", "rtn", [0.04 * factor, 0.06 * factor], outliers)
    with pytest.raises(DataError, match=r"model\.outliers is"):
        text(tmp_path)
    assert "| 0.0500 | 1.000" in text(tmp_path, **{"model.outliers": "planted"})
    assert "| 0.0250 | 1.000" in text(tmp_path, **{"model.outliers": "none"})


def test_failed_runs_are_visible(tmp_path: Path, write_run: Write) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04])
    write_run(tmp_path, "broken", "rtn", [], status="failed", error="boom")
    assert "| broken | hadamard, URT kurtosis x2 | diagonal + rank 16 | folded | failed | failed |  |" in text(tmp_path)


def test_a_missing_base_leaves_ratios_blank_and_no_run_at_all_names_the_command(
    tmp_path: Path, write_run: Write
) -> None:
    write_run(tmp_path, "best", "rtn", [0.01])
    assert "| 0.0100 |  |" in text(tmp_path)
    write_run(tmp_path / "timed", "best", "rtn", [])
    with pytest.raises(MissingRuns, match="experiment=table_ablation"):
        text(tmp_path / "timed")


def test_runs_on_different_windows_are_not_compared(tmp_path: Path, write_run: Write) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04, 0.06])
    write_run(tmp_path, "best", "rtn", [0.02])
    with pytest.raises(DataError, match="same windows"):
        text(tmp_path)
