"""What a folder must be for a run to save a packed checkpoint to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sq.checkpoint.register import QUANT_METHOD
from sq.errors import FileError
from sq.formats.labels import Bits
from sq.io import read_json, unwritable


def save_obstacles(folder: Path, bits: Bits, *, keeps_activations: bool) -> Iterator[str]:
    """Why a run saves no packed checkpoint to a folder, which must be new, empty, or hold a finished one.

    Args:
        keeps_activations: whether the run keeps activations for figures.
    """
    if not bits.packs:
        yield f"save_to packs weights, {bits.label} leaves them in 16 bits; use 2 to 8 bits or a format, or omit it"
    if keeps_activations:
        yield "save_to takes layers over from an interrupted run, task.activations must see them; make two runs"
    if reason := unwritable(folder):
        yield f"save_to={folder}; allowed: {reason}"
    elif folder.is_dir() and any(folder.iterdir()) and not _finished(folder):
        yield (
            f"save_to={folder}; allowed: a new or empty folder, or the finished checkpoint of this very run (it holds "
            "other things)"
        )


def _finished(folder: Path) -> bool:
    try:
        return bool(read_json(folder / "config.json")["quantization_config"]["quant_method"] == QUANT_METHOD)
    except (FileError, KeyError, TypeError):
        return False
