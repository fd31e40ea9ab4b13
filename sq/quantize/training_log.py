"""The log of a training: numbers step by step, written as they come, and the end of a training that diverges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from sq.errors import TrainingError

TRAINING = "training.jsonl"


class TrainingLog:
    """Numbers of a training, one record a step, in memory and in training.jsonl of the run directory.

    Args:
        folder: of the run, or None to write nothing.
        method: printed in messages.
        progress: called with (text, done, total) after each step.
        told: called with each record.
        force: train anew, whatever checkpoint an interrupted run left in the folder.
    """

    def __init__(
        self,
        folder: Path | None,
        method: str,
        progress: Callable[[str, int, int], None] | None = None,
        *,
        told: Callable[[Mapping[str, Any]], None] | None = None,
        force: bool = False,
    ) -> None:
        self.folder, self.method, self.force = folder, method, force
        self.records: list[dict[str, Any]] = []
        self._progress = progress or (lambda text, done, total: None)
        self._told = told or (lambda record: None)
        self._started = False

    def write(self, **numbers: Any) -> None:
        """Keep one record, such as step=3, loss=2.1."""
        self.records.append(numbers)
        self._append([numbers])

    def resume(self, records: list[dict[str, Any]]) -> None:
        """Start from the records of an interrupted training instead of from none."""
        self.records = list(records)
        self._started = False
        self._append(records)

    def progress(self, text: str, done: int, total: int) -> None:
        """Report how far the training is."""
        self._progress(text, done, total)

    def check(self, value: float, what: str, *, step: int, layer: int | None = None, **settings: Any) -> None:
        """Raise TrainingError for a NaN or infinite number; it names method, step, layer and settings."""
        if isfinite(value):
            return
        where = f"step {step}" + ("" if layer is None else f" of layer {layer}")
        used = ", ".join(f"method.{key}={given}" for key, given in settings.items())
        raise TrainingError(
            f"{self.method} diverged: {what} is {value} at {where}" + (f" with {used}" if used else "") + ". Lower the "
            "learning rate, or calibrate on more tokens."
        )

    def _append(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self._told(record)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / TRAINING).open("a" if self._started else "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in records)
        self._started = True
