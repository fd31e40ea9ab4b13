"""One writer a run: a lock file that names its holder, and is taken over when that holder has died."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
HALF_WRITTEN_SECONDS = 10.0  # a lock file without readable content this long was left by a writer that died


@contextmanager
def lock(path: Path, *, poll_seconds: float = 0.2, timeout_seconds: float | None = None) -> Iterator[None]:
    """Hold the lock file `path`; wait while another live process holds it.

    A holder on this host whose process is gone is no holder. A holder on another host cannot be asked and is believed.

    Raises:
        TimeoutError: still held after `timeout_seconds` (None waits for ever).
    """
    start, told = time.monotonic(), False
    while not _create(path):
        holder = _holder(path)
        if holder is not None and not _alive(holder, path):
            _take_away(path, holder)
            continue
        if not told and holder is not None:
            told = True
            who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
            log.info("waiting for %s, which %s is writing (if that is wrong, delete %s)", path.parent.name, who, path)
        if timeout_seconds is not None and time.monotonic() - start > timeout_seconds:
            raise TimeoutError(f"{path} is held by {holder} after {timeout_seconds:g} s; delete it if that is wrong")
        time.sleep(poll_seconds)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as stream:
        me = {"pid": os.getpid(), "host": socket.gethostname(), "started": _process_start(os.getpid())}
        json.dump(me, stream)
    return True


def _holder(path: Path) -> dict[str, Any] | None:
    """Who wrote the lock; {} where that cannot be read; None where the lock is gone."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _alive(holder: dict[str, Any], path: Path) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int):
        with suppress(FileNotFoundError):
            return time.time() - path.stat().st_mtime < HALF_WRITTEN_SECONDS
        return True
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started = _process_start(pid)
    # The same number can be a newer process: then its start differs from the one noted.
    return started is None or holder.get("started") in (None, started)


def _take_away(path: Path, holder: dict[str, Any]) -> None:
    """Remove a dead holder's lock; the guard keeps a second waiter from removing the lock that the first took."""
    guard = path.with_name(path.name + ".guard")
    with guard.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if _holder(path) == holder:
            log.info("process %s died while writing %s: starting again", holder.get("pid", "?"), path.parent.name)
            path.unlink(missing_ok=True)


def _process_start(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process (field 22 of /proc/<pid>/stat); None where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
