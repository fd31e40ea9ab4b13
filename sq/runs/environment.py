"""What made a result: versions of packages, the machine, the git commit and a hash of the source."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1]
COMMAND = "SINGLEQUANT_COMMAND"  # run.py sets it, so that worker processes know what the user typed
PACKAGES = (
    "torch",
    "transformers",
    "triton",
    "lm_eval",
    "datasets",
    "tokenizers",
    "safetensors",
    "accelerate",
    "numpy",
    "hydra-core",
    "wandb",
)


def environment() -> dict[str, Any]:
    """Versions (of the package metadata: nothing is imported) and CPU; threads and GPUs where torch is loaded."""
    torch = sys.modules.get("torch")
    gpus = torch.cuda.device_count() if torch and torch.cuda.is_available() else 0
    return {
        "python": platform.python_version(),
        "singlequant": _version("singlequant"),
        **{name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "gpu": [torch.cuda.get_device_name(index) for index in range(gpus)] if torch else [],
        "source": source_hash(),
    }


@cache
def cpu_name() -> str:
    """The CPU's model name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def source_hash() -> str:
    """First 12 hex digits of the sha256 of this package's .py and .yaml files: whether two runs had the same code."""
    total = hashlib.sha256()
    for folder, folders, files in os.walk(SOURCE, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            if name.endswith((".py", ".yaml")):
                path = Path(folder) / name
                total.update(f"{path.relative_to(SOURCE).as_posix()}\0".encode())
                total.update(path.read_bytes())
    return total.hexdigest()[:12]


def command() -> str:
    """The command line of this process, or of the one that started it as a sweep's worker."""
    return os.environ.get(COMMAND) or shlex.join(sys.orig_argv)


@cache
def git_commit() -> str | None:
    """Commit of the repository around this package, with "+dirty" after it where a file differs; None without one."""
    if not (SOURCE.parent / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(SOURCE.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
