"""sq-track sends a folder to a tracker."""

from __future__ import annotations

from pathlib import Path

import pytest

from sq.cli.track import main


@pytest.mark.slow
def test_a_folder_becomes_an_artifact(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    folder = tmp_path / "build"
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "main.md").write_text("| method |")
    assert main([str(folder), "tracker=mlflow", f"paths.results={tmp_path}/runs"]) == 0
    (kept,) = (tmp_path / "runs").rglob("figures/build/tables/main.md")
    assert kept.read_text() == "| method |"


def test_mistakes_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent")]) == 2
    assert "absent is not a folder" in capsys.readouterr().err
    assert main([str(tmp_path), "tracker=none"]) == 2
    assert "tracker=none takes nothing" in capsys.readouterr().err
    assert main([str(tmp_path), "tracker=wandbb"]) == 2
    assert "tracker=wandbb; allowed: mlflow, none, offline, online, tensorboard" in capsys.readouterr().err
