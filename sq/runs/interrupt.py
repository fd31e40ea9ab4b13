"""SIGTERM, which Slurm sends before it ends a job, does what Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from types import FrameType


def heed_sigterm() -> None:
    """Raise KeyboardInterrupt on SIGTERM, unless something else here waits for it, as submitit does in its workers."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("SIGTERM")
