"""Long work shows itself: bars on a terminal, a line a minute in the log elsewhere, and all of it in log.txt."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import current_process
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TimeElapsedColumn
from rich.text import Text

log = logging.getLogger(__name__)
LINE_SECONDS = 60.0

Show: TypeAlias = Callable[[str, int, int], None]
"""Shows a piece of work by its text: what is done of the total; it ends when all is done."""


@contextmanager
def shown() -> Iterator[Show]:
    """A function that shows work until the block ends; inside another such block it is that block's.

    A bar has time left from the first finished step on. Where stderr is no terminal, and in worker processes, which
    share one, all work that goes on is a line a minute, logged as INFO. The lines of a terminal, and one for each piece
    that ended, are logged as DEBUG: the run's log.txt takes them, the terminal does not.
    """
    global _shown
    if _shown is not None:
        yield _shown
        return
    console = Console(file=sys.stderr)
    bars = (console.is_terminal or console.is_jupyter) and current_process().name == "MainProcess"
    progress = _bars(console) if bars else None
    with progress or nullcontext(), _log_above() if bars else nullcontext():
        _shown = _Shown(progress)
        over = threading.Event()
        level = logging.DEBUG if bars else logging.INFO
        lines = threading.Thread(target=_lines, args=(_shown, over, level), daemon=True)
        lines.start()
        try:
            yield _shown
        finally:
            over.set()
            lines.join()
            _shown = None


class _Shown:
    """The work that goes on."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.work = progress, dict[str, _Work]()

    def __call__(self, text: str, done: int, total: int) -> None:
        if not total or (done >= total and text not in self.work):
            return
        now = time.monotonic()
        if text not in self.work:
            bar = None if self.progress is None else self.progress.add_task(text, total=total)
            self.work[text] = work = _Work(text, total, done, now, done, now, bar)
            if self.progress is not None and bar is not None:
                self.progress.update(bar, work=work)
        work = self.work[text]
        work.done, work.total, work.at = done, total, now
        if self.progress is not None and work.bar is not None:
            self.progress.update(work.bar, completed=done, total=total)
        if done < total:
            return
        del self.work[text]
        log.debug("%s: all %d after %s", text, total, _clock(now - work.start))
        if self.progress is not None and work.bar is not None:
            self.progress.remove_task(work.bar)


@dataclass
class _Work:
    """One piece: it began at `start` with `first` done, and `done` of `total` were done at `at`."""

    text: str
    total: int
    first: int
    start: float
    done: int
    at: float
    bar: TaskID | None

    def left(self, now: float) -> float | None:
        """Seconds until the end if steps go on as they went, None before the first one ends."""
        steps = self.done - self.first
        if not steps:
            return None
        return max(0.0, (self.at - self.start) / steps * (self.total - self.done) - (now - self.at))

    def line(self, now: float) -> str:
        """What is done, how long it took, and how long the rest will take."""
        gone, left = _clock(now - self.start), _clock(self.left(now))
        return f"{self.text}: {self.done} of {self.total}, {gone} gone, {left} left"


def _lines(shown: _Shown, over: threading.Event, level: int) -> None:
    while not over.wait(LINE_SECONDS):
        now = time.monotonic()
        if work := list(shown.work.values()):
            log.log(level, "%s", "; ".join(one.line(now) for one in work))


class _Left(ProgressColumn):
    """Time left; rich's own column forgets steps that took longer than half a minute."""

    def render(self, task: Task) -> Text:
        work = task.fields.get("work")
        return Text(_clock(None if work is None else work.left(time.monotonic())), style="progress.remaining")


def _bars(console: Console) -> Progress:
    """Text, bar, count, time gone and time left; they disappear at the end."""
    done, gone, left = (MofNCompleteColumn(), "done,"), (TimeElapsedColumn(), "gone,"), (_Left(), "left")
    return Progress("{task.description}", BarColumn(), *done, *gone, *left, transient=True, console=console)


@contextmanager
def _log_above() -> Iterator[None]:
    """Print the package's log messages above the bars: rich has put itself in the place of stderr."""
    handlers = [one for one in logging.getLogger("sq").handlers if type(one) is logging.StreamHandler]
    before = [one.setStream(sys.stderr) for one in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)


def _clock(seconds: float | None) -> str:
    """Hours, minutes and seconds as 1:02:03; the hours are left out where there are none."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


_shown: _Shown | None = None
