"""Long work shows itself, on a terminal and without one."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from sq import progress
from sq.progress import shown


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    monkeypatch.setattr(logging.getLogger("sq"), "propagate", True)
    with caplog.at_level(logging.DEBUG, "sq"):
        yield caplog


def said(lines: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in lines.records if record.levelno == level]


def test_without_a_terminal_there_is_a_line_a_minute_even_when_no_step_ends(lines: pytest.LogCaptureFixture) -> None:
    with shown() as show:
        show("layers", 0, 4)
        time.sleep(0.1)
        show("layers", 1, 4)
        show("training", 5, 10)
        time.sleep(0.1)
        show("training", 10, 10)
        show("layers", 4, 4)
        time.sleep(0.05)
    found = said(lines, logging.INFO)
    assert found[0] == "layers: 0 of 4, 0:00 gone, -:-- left"
    assert "layers: 1 of 4, 0:00 gone, 0:00 left; training: 5 of 10, 0:00 gone, -:-- left" in found
    before = len(found)
    time.sleep(0.05)
    assert len(said(lines, logging.INFO)) == before, "nothing is said when the block is over"
    assert said(lines, logging.DEBUG) == ["training: all 10 after 0:00", "layers: all 4 after 0:00"]


def test_the_time_left_is_that_of_the_steps_so_far() -> None:
    """A training that was taken up at step 100 of 400, and took 50 s for 100 steps: 200 are left, 100 s less the 10 s
    since its last step."""
    work = progress._Work("training", 400, first=100, start=0.0, done=200, at=50.0, bar=None)
    assert work.left(60.0) == 90.0
    assert work.line(3723.0) == "training: 200 of 400, 1:02:03 gone, 0:00 left"


def test_what_is_done_already_is_not_shown(lines: pytest.LogCaptureFixture) -> None:
    with shown() as show:
        show("nothing", 0, 0)
        show("rotations", 400, 400)
        time.sleep(0.05)
    assert not said(lines, logging.INFO) + said(lines, logging.DEBUG)


def test_a_block_inside_another_uses_its_bars(lines: pytest.LogCaptureFixture) -> None:
    with shown() as outer:
        with shown() as inner:
            assert inner is outer
        outer("layers", 0, 4)
        time.sleep(0.1)
    assert said(lines, logging.INFO)
    with shown() as later:
        assert later is not outer


SCRIPT = """
import logging, sys, time
from sq.progress import shown
handler = logging.StreamHandler()
logging.getLogger("sq").addHandler(handler)
with shown() as show:
    show("layers", 0, 3)
    time.sleep(0.3)
    show("layers", 1, 3)
    logging.getLogger("sq").warning("a message")
    time.sleep(1.2)
print("out", file=sys.stderr)
assert handler.stream is sys.stderr
"""


def test_on_a_terminal_there_is_a_bar_from_the_first_second_and_messages_stand_above_it() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    assert process.wait(timeout=30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "0/3 done" in text
    assert "1/3 done" in text
    assert "-:-- left" in text
    assert "0:00 left" in text or "0:01 left" in text
    assert "a message\r\n" in text
    assert text.endswith("out\r\n"), "the bar vanishes"
