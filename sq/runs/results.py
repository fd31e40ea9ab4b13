"""result.json: the one record that every table, figure and reuse of a run reads (DESIGN section 3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from sq.config.settings import ExperimentSettings
from sq.io import write_json

SCHEMA = 2  # raised when a field changes its meaning; readers refuse what they do not know
RESULT = "result.json"
WINDOWS = "windows.npz"  # values by window
TRAINING = "training.jsonl"  # numbers of a training, as sq.quantize.training_log writes them
ACTIVATIONS = "activations.npz"  # what sq.quantize.stage_record keeps, where the task asks for it


class Measured(Protocol):
    """What measuring one run gives back."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Flat numbers, named as DESIGN section 3 says ("ppl/embedded", "kl/embedded", "quantize/seconds")."""

    @property
    def extras(self) -> Mapping[str, Any]:
        """Anything JSON can hold (fingerprints, task versions, statistics of each site)."""

    @property
    def arrays(self) -> Mapping[str, Any]:
        """numpy arrays by name (values of each window, for paired intervals), saved as windows.npz."""


class Executor(Protocol):
    """Measures one run: `sq.runs.execute.execute` unless the config names another."""

    def __call__(self, settings: ExperimentSettings, run_dir: Path, /) -> Measured: ...


@dataclass(frozen=True)
class Result:
    """One run's record; `metrics` may hold None where a number was NaN or infinite."""

    run_id: str
    identity: str
    status: Literal["finished", "failed"]
    created: str  # ISO 8601, UTC, when the run ended
    command: str
    git_commit: str | None
    environment: dict[str, Any]
    model: str
    method: str
    bits: str
    weights: str
    activations: str
    seed: int
    config: dict[str, Any]
    metrics: dict[str, float | None]
    extras: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # wall clock of the whole run, loading and evaluation included
    error: str | None = None
    traceback: str | None = None
    schema: int = SCHEMA

    def write(self, folder: Path) -> None:
        """Write result.json into the run directory, atomically."""
        write_json(folder / RESULT, asdict(self))


def read_result(folder: Path) -> Result | None:
    """The record of a run directory, or None where there is none yet or it cannot be used (other schema, damaged)."""
    try:
        content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            return None
        return Result(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
