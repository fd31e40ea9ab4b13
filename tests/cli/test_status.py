"""Command lines end with a status and one line, whatever happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sq.cli import bench, report, speed
from sq.cli.status import Mistake, ended
from sq.errors import ConfigError, FileError


def fail(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Mistake("no such thing"), 2, "x: no such thing"),
        (ConfigError(["a", "b"]), 2, "x: the configuration has 2 mistakes"),
        (FileError("broken\nfile"), 1, "x: broken file"),
        (OSError("disk full"), 1, "x: disk full"),
        (RuntimeError("melted"), 1, "x: RuntimeError: melted (SINGLEQUANT_TRACEBACK=1 shows where)"),
        (AssertionError(), 1, "x: AssertionError: AssertionError"),
        (KeyboardInterrupt(), 130, "x: interrupted"),
    ],
)
def test_status_and_line(error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("x", fail(error)) == status
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert "Traceback" not in told
    assert ended("x", lambda: None) == 0


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (bench.main, ["--threads", "2"]),
        (bench.main, ["--cpu", "--tune"]),
        (bench.main, ["--cpu", "--only", "nothing like this"]),
        (report.main, ["--results", "nowhere"]),
        (report.main, ["--only", "nothing"]),
        (report.main, ["--run", "nowhere"]),
        (report.main, ["bits=w99a1"]),
        (speed.main, ["random_tiny", "--device", "tpu"]),
        (speed.main, ["random_tiny", "--batches", "0"]),
        (speed.main, ["random_tiny", "--layers", "-1"]),
    ],
)
def test_mistakes_end_with_2(
    main: Callable[[list[str]], int], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told
    assert "Traceback" not in told


@pytest.mark.parametrize("words", [["nothing"], ["bits", "nowhere"], ["bits", ".", "metric=x"], []])
def test_tables_end_with_2(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sq.analysis.tables", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
