"""What an exported folder says of its origin, in a file of its own: engines refuse further keys in config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sq.digest import is_sealed
from sq.errors import FileError
from sq.io import read_json

STAMP = "export.json"


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """Format, run, recipe and digests of the files of an exported folder; None for a folder that has no sound stamp."""
    try:
        found: dict[str, Any] = read_json(folder / STAMP)
        return found if is_sealed(found) and isinstance(found["files"], dict) else None
    except (FileError, KeyError, TypeError, AttributeError):
        return None
