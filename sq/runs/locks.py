"""One writer a run: a lock file names the process that owns it, and another process takes it over if the owner died.

The lock is a lease of the filelock package. An owner on this host is dead when its process is gone. An owner on another
host touches its lock every BEAT_SECONDS and counts as dead when a waiter has seen no touch for STALE_SECONDS.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

log = logging.getLogger(__name__)
BEAT_SECONDS = 15.0
STALE_SECONDS = 180.0  # twelve beats; NFS clients may show a file's time a minute late


@contextmanager
def lock(path: Path, *, poll_seconds: float = 0.2, timeout_seconds: float | None = None) -> Iterator[None]:
    """Own the lock file `path` inside the block; wait while a live process owns it, on this host or another.

    Raises:
        TimeoutError: another process still owns it after `timeout_seconds` (None waits for ever, 0 not at all).
    """
    lease = SoftFileLease(
        path, lease_duration=STALE_SECONDS, heartbeat_interval=BEAT_SECONDS, poll_interval=poll_seconds
    )
    owner = _owner(lease)
    try:
        lease.acquire(timeout=2 * poll_seconds)
        if owner is not None:
            log.info("taking up %s, which %s left", path.parent.name, owner)
    except Timeout:
        holder = _owner(lease) or "another process"
        if timeout_seconds != 0:
            hint = f"if that is wrong, delete {path}"
            log.info("waiting for %s, which %s is writing (%s)", path.parent.name, holder, hint)
        try:
            lease.acquire(timeout=-1 if timeout_seconds is None else timeout_seconds)
        except Timeout as error:
            words = f"{path} is held by {holder} after {timeout_seconds:g} s; delete it if that is wrong"
            raise TimeoutError(words) from error
    try:
        yield
    finally:
        lease.release()


def _owner(lease: SoftFileLease) -> str | None:
    """Who holds the lock, in words; None where nobody does or it cannot be read."""
    owner = lease.owner
    return None if owner is None else f"process {owner.pid} on {owner.hostname}"
