"""`python run.py --help` is quick and names every group."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from sq.config.parse import options

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_help_is_quick_and_complete(tmp_path: Path) -> None:
    start = time.perf_counter()
    done = run("--help", cwd=tmp_path)
    seconds = time.perf_counter() - start
    print(f"python run.py --help: {seconds:.2f} s")  # 0.6 s on two idle cores; the promise is 3 s
    assert done.returncode == 0, done.stderr
    assert seconds < 6
    for group in ("model", "method", "bits", "weights", "activations", "calibration", "task", "tracker", "experiment"):
        assert f"{group}: {', '.join(options(group))}\n" in done.stdout
    assert done.stdout.count("python run.py") >= 6
    assert not list(tmp_path.iterdir()), "asking for help must leave nothing behind"


def test_mistakes_end_with_status_2_a_readable_text_and_nothing_written(tmp_path: Path) -> None:
    done = run("method=nope", "bits.weights=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "the configuration has" in done.stderr
    assert "method=nope; allowed: " in done.stderr
    assert "bits.weights=1; allowed: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_run_py_stays_small() -> None:
    text = (ROOT / "run.py").read_text()
    assert len(text.splitlines()) < 100
    assert "if method ==" not in text
