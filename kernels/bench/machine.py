"""The GPU at hand, and what a result was made with."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .case import Place
from .timing import GraphTimer, Timer

_FIELDS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


@dataclass(frozen=True)
class Machine:
    """What the suite runs on."""

    name: str  # of the GPU
    place: Place
    timer: Callable[[float | None], Timer]  # from the seconds that a case may take, None for as long as it needs
    environment: dict[str, Any]  # versions, driver, clocks, commit


def find_machine() -> Machine | None:
    """The current CUDA device, None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    l2_bytes = int(properties.L2_cache_size)
    return Machine(
        torch.cuda.get_device_name(),
        Place("cuda", "triton"),
        lambda seconds: GraphTimer(torch.cuda, l2_bytes, seconds),
        environment() | {"sms": properties.multi_processor_count, "l2_bytes": l2_bytes},
    )


def environment() -> dict[str, Any]:
    """Versions of what computes, GPU, driver and clocks as far as there are any, commit and command line."""
    gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "nvidia_smi": _nvidia_smi() if gpu else None,
        "git_commit": git_commit(),
        "command": sys.argv,
    }


def git_commit() -> str | None:
    """Commit of the checkout this file lies in, "+dirty" behind it where files were changed; None outside one."""
    folder = Path(__file__).resolve().parent
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+dirty" if commit and changed else commit


def _nvidia_smi() -> dict[str, str] | None:
    """Driver, clocks, power and temperature of the first GPU of this name, where nvidia-smi is installed."""
    lines = _output("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader") or ""
    for line in lines.splitlines():
        values = dict(zip(_FIELDS.split(","), map(str.strip, line.split(",")), strict=False))
        if values["name"] == torch.cuda.get_device_name():
            return values
    return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
