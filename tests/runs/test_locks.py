"""One writer a run, and no lock outlives its holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import SoftFileLease

from sq.runs import locks
from sq.runs.locks import lock

# Hosts are told apart by name: a process that is given one stands for another machine on the same shared folder.
HOST = """
import socket, sys, time
from pathlib import Path
from sq.runs import locks
socket.gethostname = lambda: sys.argv[2]
locks.BEAT_SECONDS, locks.STALE_SECONDS = 0.1, 1.0
"""
WORKER = """
folder = Path(sys.argv[1])
for _ in range(5):
    with locks.lock(folder / ".lock", poll_seconds=0.001):
        inside = folder / "inside"
        inside.touch(exist_ok=False)   # fails where two are inside
        time.sleep(0.005)
        inside.unlink()
"""
HOLDER = """
with locks.lock(Path(sys.argv[1]) / ".lock"):
    print("inside", flush=True)
    sys.stdin.readline()
"""
HERE = os.uname().nodename


def start(script: str, folder: Path, host: str = HERE) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOST + script, str(folder), host]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def holder(folder: Path, host: str = HERE) -> subprocess.Popen[str]:
    """A process that is inside."""
    process = start(HOLDER, folder, host)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    return process


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "STALE_SECONDS", 1.0)


def test_a_lock_says_who_holds_it_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock(path):
        assert SoftFileLease(path).owner.pid == os.getpid()
        held = f"held by process {os.getpid()} .* after 0.05 s; delete it"
        with pytest.raises(TimeoutError, match=held), lock(path, poll_seconds=0.01, timeout_seconds=0.05):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_goes_away_when_its_body_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lock(tmp_path / ".lock"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    monkeypatch.setattr(locks, "STALE_SECONDS", 1.0)
    start = time.monotonic()
    with lock(tmp_path / ".lock", timeout_seconds=5):
        assert time.monotonic() - start < 0.9, "waited as for another host"


@pytest.mark.parametrize("host", [HERE, "elsewhere"])
def test_a_live_holder_is_waited_for_and_another_hosts_dead_one_is_not_for_long(tmp_path: Path, host: str) -> None:
    """Longer than STALE_SECONDS: the touches of the live one count on another host, and its process on this one."""
    process = holder(tmp_path, host)
    with pytest.raises(TimeoutError), lock(tmp_path / ".lock", timeout_seconds=2.0):
        pass
    process.kill()
    process.wait()
    with lock(tmp_path / ".lock", timeout_seconds=10):
        assert SoftFileLease(tmp_path / ".lock").owner.pid == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_silent_holder_that_wakes_up_leaves_its_heirs_lock_alone(tmp_path: Path) -> None:
    """A stopped process looks like one behind a file server that is away."""
    process = holder(tmp_path, "elsewhere")
    process.send_signal(signal.SIGSTOP)
    try:
        with lock(tmp_path / ".lock", timeout_seconds=10):
            process.send_signal(signal.SIGCONT)
            process.communicate("go on\n", timeout=10)
            assert process.returncode == 0
            assert SoftFileLease(tmp_path / ".lock").owner.pid == os.getpid()
    finally:
        process.kill()


def test_a_half_written_lock_is_believed_for_a_while_only(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text("filelock/2\npid=1")
    with pytest.raises(TimeoutError), lock(path, poll_seconds=0.01, timeout_seconds=0.05):
        pass
    with lock(path, timeout_seconds=10):
        pass


def test_workers_of_two_hosts_are_never_inside_together_even_over_a_dead_holders_lock(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    workers = [start(WORKER, tmp_path, HERE if number % 2 else "elsewhere") for number in range(4)]
    assert [worker.wait(timeout=60) for worker in workers] == [0] * 4
