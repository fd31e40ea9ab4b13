"""One writer a run, and no lock outlives its holder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sq.runs import locks
from sq.runs.locks import lock

WORKER = """
import sys, time
from pathlib import Path
from sq.runs.locks import lock
folder = Path(sys.argv[1])
for _ in range(5):
    with lock(folder / ".lock", poll_seconds=0.001):
        inside = folder / "inside"
        inside.touch(exist_ok=False)   # fails where two are inside
        time.sleep(0.005)
        inside.unlink()
"""


def holder(**changes: object) -> str:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": None, **changes})


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_says_who_holds_it_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(TimeoutError, match="delete it"), lock(path, poll_seconds=0.01, timeout_seconds=0.05):
            pass
    assert not path.exists()


def test_a_lock_goes_away_when_its_body_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lock(tmp_path / ".lock"):
        raise KeyboardInterrupt
    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(holder(pid=dead_pid()))
    with lock(tmp_path / ".lock", timeout_seconds=5):
        pass


def test_a_process_that_reuses_the_number_of_a_dead_one_is_not_its_heir(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(holder(started=1))
    with lock(tmp_path / ".lock", timeout_seconds=5):
        pass


def test_a_half_written_lock_is_believed_for_a_while_only(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    with pytest.raises(TimeoutError), lock(path, poll_seconds=0.01, timeout_seconds=0.05):
        pass
    silent_for(path, 60)
    with lock(path, timeout_seconds=5):
        pass


def silent_for(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_another_host_is_believed_as_long_as_it_touches_its_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text(holder(host="elsewhere", pid=dead_pid()))
    silent_for(path, locks.STALE_SECONDS - 20)
    with pytest.raises(TimeoutError), lock(path, poll_seconds=0.01, timeout_seconds=0.05):
        pass
    silent_for(path, locks.STALE_SECONDS + 20)
    with lock(path, timeout_seconds=5):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_a_live_process_of_this_host_is_believed_however_long_it_is_silent(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text(holder())
    silent_for(path, 10 * locks.STALE_SECONDS)
    with pytest.raises(TimeoutError), lock(path, poll_seconds=0.01, timeout_seconds=0.05):
        pass


def test_a_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    path = tmp_path / ".lock"
    with lock(path):
        silent_for(path, 1000)
        deadline = time.monotonic() + 5
        while path.stat().st_mtime < time.time() - 500:
            assert time.monotonic() < deadline, "no beat"
            time.sleep(0.01)


def test_a_holder_that_was_given_up_leaves_the_next_ones_lock_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    path = tmp_path / ".lock"
    with lock(path):
        path.unlink()
        path.write_text(holder(host="elsewhere"))
        silent_for(path, 1000)
        time.sleep(0.1)
    assert json.loads(path.read_text())["host"] == "elsewhere"
    assert path.stat().st_mtime < time.time() - 500, "nor does it keep a lock alive that is not its own"


def test_workers_are_never_inside_together_even_over_a_dead_holders_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(holder(pid=dead_pid()))
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)]) for _ in range(4)]
    assert [worker.wait(timeout=60) for worker in workers] == [0] * 4
