"""A slice of the campaign of faults (docs/trust.md); the whole of it is `python -m tests.faults --count 500`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_what_is_promised_holds() -> None:
    """In a process of its own: it forks, which one with threads must not."""
    words = [sys.executable, "-m", "tests.faults", "--count", "40", "--seed", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "| all | 40 | 40 | 0 | 0 | 0 | 0 |" in done.stdout
