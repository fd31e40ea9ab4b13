"""One writer a run: a lock file names the process that owns it, and another process takes it over if the owner died.

An owner on this host is dead when its process is gone. An owner on another host touches its lock every BEAT_SECONDS and
counts as dead after STALE_SECONDS without a touch, by the clock of the file system that both hosts write to.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sq.errors import FileError
from sq.io import read_json

log = logging.getLogger(__name__)
HALF_WRITTEN_SECONDS = 10.0  # the owner of a lock file that stays unreadable for so long died while it wrote it
BEAT_SECONDS = 15.0
STALE_SECONDS = 180.0  # twelve beats; NFS clients may show a file's time a minute late


@contextmanager
def lock(path: Path, *, poll_seconds: float = 0.2, timeout_seconds: float | None = None) -> Iterator[None]:
    """Own the lock file `path` inside the block; wait while a live process owns it, on this host or another.

    Raises:
        TimeoutError: another process still owns it after `timeout_seconds` (None waits for ever).
    """
    start, logged = time.monotonic(), False
    while (handle := _create(path)) is None:
        holder = _holder(path)
        if holder is not None and not _alive(holder, path):
            _take_away(path, holder)
            continue
        if not logged and holder is not None:
            logged = True
            hint = f"if that is wrong, delete {path}"
            log.info("waiting for %s, which %s is writing (%s)", path.parent.name, _name(holder), hint)
        if timeout_seconds is not None and time.monotonic() - start > timeout_seconds:
            raise TimeoutError(f"{path} is held by {holder} after {timeout_seconds:g} s; delete it if that is wrong")
        time.sleep(poll_seconds)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(handle, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        with suppress(FileNotFoundError):  # another process took it over because this one was silent for too long
            if os.path.samestat(os.fstat(handle), path.stat()):
                path.unlink()
        os.close(handle)


def _create(path: Path) -> int | None:
    """Make the lock for this process and return an open handle on it; None where there is a lock already."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": _process_start(os.getpid())}
    os.write(handle, json.dumps(me).encode())
    os.fsync(handle)
    return handle


def _beat(handle: int, done: threading.Event) -> None:
    """Touch the file behind the handle until `done`: it is this process's lock even if its path now names another."""
    while not done.wait(BEAT_SECONDS):
        with suppress(OSError):  # a file server that is away for a moment
            os.utime(handle)


def _holder(path: Path) -> dict[str, Any] | None:
    """The content of the lock: which process owns it. {} where it cannot be read; None where the lock is gone."""
    try:
        content = read_json(path)
    except FileError as error:
        return None if isinstance(error.__cause__, FileNotFoundError) else {}
    return content if isinstance(content, dict) else {}


def _alive(holder: dict[str, Any], path: Path) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return _silent_seconds(path) < HALF_WRITTEN_SECONDS
    if holder.get("host") != socket.gethostname():
        return _silent_seconds(path) < STALE_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started = _process_start(pid)
    # A newer process can have the same number: its start differs from the start that the lock names.
    return started is None or holder.get("started") in (None, started)


def _silent_seconds(path: Path) -> float:
    """Seconds since the last touch, by the clock of the lock's file system: the clocks of hosts differ by minutes."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as now:
            return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _take_away(path: Path, holder: dict[str, Any]) -> None:
    """Remove a dead owner's lock; the guard keeps a second waiter from removing the lock that the first one made."""
    guard = path.with_name(path.name + ".guard")
    with guard.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if _holder(path) == holder and not _alive(holder, path):
            log.info("%s died while writing %s: starting again", _name(holder), path.parent.name)
            path.unlink(missing_ok=True)


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _process_start(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process (field 22 of /proc/<pid>/stat); None where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
