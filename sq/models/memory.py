"""Peak memory of a stretch of work: the CUDA allocator's, or the process's resident set on a CPU."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch


class PeakMemory:
    """Start on construction; `peak()` is the highest number of bytes in use since.

    On Linux the resident high-water mark is reset through /proc/self/clear_refs; where that is refused, `resets` is
    False and the peak covers the whole life of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.resets = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.resets = False
        self.start = _status("VmRSS")

    def peak(self) -> int:
        """Highest bytes in use since the start."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return _status("VmHWM")


def return_freed() -> None:
    """Give memory that earlier work freed back to the system, so that it does not count as the next work's."""
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@cache
def total_memory(device: torch.device) -> int:
    """Bytes of memory that a device has, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _status(key: str) -> int:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
