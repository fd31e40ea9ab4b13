"""Files that are either whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call `write` with a temporary file in the same folder and rename it to `path`.

    A reader never sees half a file, whenever the writer dies; a file that was there before stays until the rename.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    write_atomic(path, lambda stream: _write_all(stream, data))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON atomically: NaN and inf become null, because JSON has no word for them.

    Values that JSON does not know become numbers or lists where they convert (numpy, torch) and text otherwise.
    """
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file of arrays by name atomically, compressed."""
    import numpy as np

    named: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    write_atomic(path, lambda stream: np.savez_compressed(stream, **named))


def jsonable(value: Any) -> Any:
    """`value` with tuples as lists, numpy scalars as numbers, non-finite numbers as None and the rest as text."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    for convert in ("tolist", "item"):  # numpy arrays and scalars, torch tensors
        if callable(method := getattr(value, convert, None)):
            return jsonable(method())
    return str(value)


def _write_all(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
