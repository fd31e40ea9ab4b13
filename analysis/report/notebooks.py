"""Execute notebooks headless, one after another in one kernel: importing pandas and matplotlib is paid once."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from sq.analysis.asked import asked
from sq.analysis.published.check import check_published
from sq.analysis.report.page import ABSENT, MISSING

ANALYSIS = Path(__file__).resolve().parents[1]
ORDER = ("quality", "real", "ablation", "time", "outliers", "convergence", "speed", "published")
RESET = "%reset -f"  # names of one notebook must not reach the next


@dataclass(frozen=True)
class Executed:
    """One notebook with its outputs.

    Attributes:
        name: of the file, without .ipynb.
        cells: as nbformat has them, outputs included.
        seconds: how long executing took.
        error: the message and traceback of the cell that raised; None where no cell did.
        missing: commands that make the runs which were asked for and are not there.
    """

    name: str
    cells: list[Any]
    seconds: float
    error: str | None
    missing: list[str]


def found_notebooks(folder: Path = ANALYSIS) -> list[Path]:
    """The notebooks of a folder: known topics in their order, others behind them by name."""
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(folder.glob("*.ipynb"), key=lambda path: (place.get(path.stem, len(place)), path.stem))


def experiments_of(path: Path) -> list[str]:
    """The experiments that a notebook's cells name, each once."""
    cells = nbformat.read(path, as_version=4).cells
    names = re.findall(r"\b(?:table|figure)_\w+", "\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    return list(dict.fromkeys(names))


def is_worth_it(path: Path, runs: pd.DataFrame, overrides: Sequence[str] | None) -> bool:
    """Whether a notebook may have something to show, which is found out without executing it.

    One that reads no experiment compares runs with the literature (published.ipynb).
    """
    if names := experiments_of(path):
        return any(asked(runs, name, overrides) for name in names)
    return not check_published(runs).frame.empty


def execute(notebooks: Sequence[Path], environment: Mapping[str, str]) -> Generator[Executed, None, None]:
    """Execute each notebook and yield it; one that raises is yielded with its error and the others go on.

    Args:
        notebooks: files; they are not changed.
        environment: variables of the kernel, over this process's.
    """
    kernel: AsyncKernelManager | None = None
    loop = asyncio.new_event_loop()
    sockets = tempfile.TemporaryDirectory(prefix="sq-report-")  # of this user alone, where TCP is open to all
    try:
        for number, path in enumerate(notebooks):
            if kernel is None or not loop.run_until_complete(kernel.is_alive()):  # one that died is replaced
                place = f"{sockets.name}/{number}"
                kernel = AsyncKernelManager(transport="ipc", ip=place, kernel_spec_manager=_ThisPython())
                loop.run_until_complete(kernel.start_kernel(env={**os.environ, **environment}))
            yield loop.run_until_complete(_one(path, kernel, loop))
    finally:
        if kernel is not None:
            loop.run_until_complete(kernel.shutdown_kernel(now=True))
        loop.close()
        sockets.cleanup()


async def _one(path: Path, kernel: AsyncKernelManager, loop: asyncio.AbstractEventLoop) -> Executed:
    notebook = nbformat.read(path, as_version=4)
    cells = list(notebook.cells)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(RESET))
    # nbclient would answer Ctrl-C by ending the kernel and nothing else; without its handler the report ends as well.
    unhandled = {"on_notebook_start": lambda notebook: loop.remove_signal_handler(signal.SIGINT)}
    client = NotebookClient(notebook, km=kernel, timeout=None, **unhandled)
    error, start = None, time.perf_counter()
    try:
        await client.async_execute()
    except CellExecutionError as failure:
        error = str(failure)
    except DeadKernelError as failure:
        error = f"the kernel died: {failure}"
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
    seconds = time.perf_counter() - start
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    told = [output.get("metadata", {}) for output in outputs]
    missing = [one[MISSING] for one in told if one.get(MISSING) and not one.get(ABSENT)]
    return Executed(path.stem, cells, seconds, error, list(dict.fromkeys(missing)))


class _ThisPython(KernelSpecManager):
    """The kernel is the Python that runs the report, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")
