"""Progress bars of a run: its layers, and each training as it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar() -> Progress:
    """Text, bar, count, time gone and time left; it disappears at the end."""
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("done,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, transient=True)


def shown_in(progress: Progress) -> Callable[[str, int, int], None]:
    """A bar for each training that tells how far it is; it leaves when the training ends."""
    tasks: dict[str, TaskID] = {}

    def show(text: str, done: int, total: int) -> None:
        if text not in tasks:
            tasks[text] = progress.add_task(text, total=total)
        progress.update(tasks[text], completed=done)
        if done >= total:
            progress.remove_task(tasks.pop(text))

    return show
