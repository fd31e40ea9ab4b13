"""A program that leaves has written everything and told everybody; one that another program runs ends as ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, sys
from sq.runs.leave import leave

class Slow:
    def __del__(self):
        print("taken apart")

kept = Slow()
atexit.register(lambda: print("told"))
print("written", end="")
print("to stderr", end="", file=sys.stderr)
leave({status}, __file__)
"""


def program(folder: Path, status: int = 3) -> Path:
    place = folder / "program.py"
    place.write_text(PROGRAM.format(status=status))
    return place


@pytest.mark.parametrize("status", [0, 3])
def test_output_and_handlers_are_complete_and_nothing_is_taken_apart(status: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, program(tmp_path, status).name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "writtentold\n", "to stderr")


def test_a_program_under_another_one_ends_as_ever(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cProfile", program(tmp_path).name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "function calls" in done.stdout, done.stderr
    assert "taken apart" in done.stdout


def test_output_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, program(tmp_path)], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode not in (0, 3)
    assert "No space left on device" in done.stderr
