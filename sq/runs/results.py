"""result.json: the one record that every table, figure and reuse of a run reads (DESIGN section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from sq.config.settings import ExperimentSettings
from sq.errors import FileError
from sq.io import read_json, write_json

SCHEMA = 2  # raised when a field changes its meaning; readers refuse other schemas
RESULT = "result.json"
WINDOWS = "windows.npz"  # values by window
TRAINING = "training.jsonl"  # numbers of a training, as sq.quantize.training_log writes them
ACTIVATIONS = "activations.npz"  # what sq.quantize.stage_record keeps, where task.activations is set


class Measured(Protocol):
    """What the measurement of one run returns.

    Attributes:
        metrics: flat numbers, named as DESIGN section 3 says ("ppl/embedded", "kl/embedded", "quantize/seconds").
        extras: anything JSON can hold (fingerprints, task versions, statistics of each site).
        arrays: numpy arrays by name (values of each window, for paired intervals), saved as windows.npz.
    """

    @property
    def metrics(self) -> Mapping[str, float]: ...

    @property
    def extras(self) -> Mapping[str, Any]: ...

    @property
    def arrays(self) -> Mapping[str, Any]: ...


Executor: TypeAlias = Callable[[ExperimentSettings, Path], Measured]
"""Measures one run, into its directory: `sq.runs.execute.execute` unless the config names another."""


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

    @property
    def shown_method(self) -> str:
        """The method, and what the model's sizes decided of it: "quarot, cross_head none"."""
        return shown_method(self.method, self.extras.get("resolved") or {})


def shown_method(method: str, resolved: Mapping[str, str]) -> str:
    """As `Result.shown_method`."""
    return ", ".join([method, *(f"{option} {value}" for option, value in resolved.items())])


def read_result(folder: Path) -> Result | None:
    """The record of a run directory; None where it is absent, damaged or of another schema."""
    try:
        content = read_json(folder / RESULT)
        return Result(**content) if content.pop("schema") == SCHEMA else None
    except (FileError, TypeError, KeyError, AttributeError):
        return None
