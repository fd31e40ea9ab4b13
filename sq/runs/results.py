"""result.json: the one record that every table, figure and reuse of a run reads (docs/runs.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sq.config.settings import ExperimentSettings
from sq.digest import SEAL, content_digest, is_sealed, sealed
from sq.errors import FileError
from sq.io import jsonable, read_json, write_json

SCHEMA = 3  # raised when a field changes its meaning; readers refuse other schemas
RESULT = "result.json"
INTERRUPTED = "interrupted.json"  # in its place: by what, when and where a run was cut off
WINDOWS = "windows.npz"  # values by window
TRAINING = "training.jsonl"  # numbers of a training, as sq.quantize.training_log writes them
ACTIVATIONS = "activations.npz"  # what sq.quantize.stage_record keeps, where task.activations is set


class Measured(Protocol):
    """What the measurement of one run returns.

    Attributes:
        metrics: flat numbers, named as in docs/runs.md ("ppl/embedded", "kl/embedded", "quantize/seconds").
        extras: anything JSON can hold (fingerprints, task versions, statistics of each site).
        arrays: numpy arrays by name (values of each window, for paired intervals), saved as windows.npz.
    """

    @property
    def metrics(self) -> Mapping[str, float]: ...

    @property
    def extras(self) -> Mapping[str, Any]: ...

    @property
    def arrays(self) -> Mapping[str, Any]: ...


Tell: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Is given what is known while a run goes on: "training" with a record of its log, "layer" with what one measured."""


def unheard(kind: str, values: Mapping[str, Any]) -> None:
    """A `Tell` for runs that nobody watches."""


Executor: TypeAlias = Callable[[ExperimentSettings, Path, Tell], Measured]
"""Measures one run, into its directory: `sq.runs.execute.execute` unless the config names another."""


Word: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
"""A name that is part of a folder's name and leads nowhere else."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Result:
    """One run's record; `metrics` may hold None where a number was NaN or infinite.

    Attributes:
        arithmetic: "packed" where products of integers were measured, "fake" where rounded weights and activations in
            floating point were, "none" for full precision.
        files: sha256 of the other files that tables read, by name.
    """

    run_id: Word
    identity: str
    status: Literal["finished", "failed"]
    created: str  # ISO 8601, UTC, when the run ended
    command: str
    git_commit: str | None
    environment: dict[str, Any]
    model: Word
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
    arithmetic: Literal["fake", "packed", "none"] = "fake"
    files: dict[Word, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def write(self, folder: Path) -> None:
        """Write result.json into the run directory, atomically and sealed (`sq.digest.sealed`)."""
        write_json(folder / RESULT, sealed(jsonable(asdict(self))))

    @property
    def shown_method(self) -> str:
        """The method, and what the model's sizes decided of it: "quarot, cross_head none"."""
        return shown_method(self.method, self.extras.get("resolved") or {})


def shown_method(method: str, resolved: Mapping[str, str]) -> str:
    """As `Result.shown_method`."""
    return ", ".join([method, *(f"{option} {value}" for option, value in resolved.items())])


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a config by the names that they have on the command line: "calibration.tokens"."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def read_result(folder: Path) -> Result | None:
    """The record of a run directory; None where it is absent, damaged or of another schema (`examine` says which)."""
    found = _read(folder)
    return found if isinstance(found, Result) else None


def examine(folder: Path) -> tuple[Result | None, str | None]:
    """The record of a run directory as `read_result` has it, and what is wrong with the directory.

    It may be not readable, edited, or lack a file that belongs to it. Nothing is wrong with a run that was cut
    off and has no result.json.
    """
    if not (folder / RESULT).exists():
        return None, None
    found = _read(folder)
    if isinstance(found, str):
        return None, found
    return found, f"{', '.join(lost)}: missing or not what was written" if (lost := lost_files(folder, found)) else None


def lost_files(folder: Path, result: Result) -> list[str]:
    """Files of a result that are missing or not what was written."""

    def whole(name: str, digest: str) -> bool:
        try:
            return content_digest(folder / name) == digest
        except FileError:
            return False

    return [name for name, digest in result.files.items() if not whole(name, digest)]


def digests_of(folder: Path) -> dict[str, str]:
    """`Result.files` of a run directory as it is."""
    return {name: content_digest(folder / name) for name in (WINDOWS, ACTIVATIONS) if (folder / name).is_file()}


def _read(folder: Path) -> Result | str:
    """A record, or why there is none."""
    try:
        content = read_json(folder / RESULT)
        if not isinstance(content, dict):
            return f"{RESULT} is no record"
        if content.get("schema") != SCHEMA:
            return f"{RESULT} has schema {content.get('schema')!r}, this version reads {SCHEMA}"
        if not is_sealed(content):
            return f"{RESULT} was changed after it was written"
        content.pop(SEAL)
        found: Result = TypeAdapter(Result).validate_json(json.dumps(content), strict=True)
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"{RESULT}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except FileError as error:
        return str(error)
