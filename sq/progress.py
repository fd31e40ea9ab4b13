"""Progress bars of a run: its layers, and each training as it goes on."""

from __future__ import annotations

from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn, TimeRemainingColumn


def progress_bar() -> Progress:
    """Text, bar, count, time gone and time left; it disappears at the end."""
    done, gone, left = (MofNCompleteColumn(), "done,"), (TimeElapsedColumn(), "gone,"), (TimeRemainingColumn(), "left")
    return Progress("{task.description}", BarColumn(), *done, *gone, *left, transient=True)


def shown_in(progress: Progress) -> Callable[[str, int, int], None]:
    """A function that shows a bar for each training, with what is done of the total, until the training ends."""
    tasks: dict[str, TaskID] = {}

    def show(text: str, done: int, total: int) -> None:
        if text not in tasks:
            tasks[text] = progress.add_task(text, total=total)
        progress.update(tasks[text], completed=done)
        if done >= total:
            progress.remove_task(tasks.pop(text))

    return show
