"""What a folder must be for a run to save a packed checkpoint to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from sq.checkpoint.manifest import run_of
from sq.formats.labels import Bits
from sq.io import unwritable


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
    elif folder.is_dir() and any(folder.iterdir()) and run_of(folder) is None:
        yield (
            f"save_to={folder}; allowed: a new or empty folder, or the finished checkpoint of this very run (it holds "
            "other things)"
        )


def save_conflicts(wanted: Iterable[tuple[Path, str, str]]) -> Iterator[str]:
    """Why runs cannot save to their folders: another run has a folder, or two of them have the same.

    Args:
        wanted: folder, run id and identity of each run that saves.
    """
    first: dict[Path, tuple[str, str]] = {}
    for folder, name, identity in wanted:
        if (found := run_of(folder)) is not None and found != identity:
            holds = f"the checkpoint of run ...-{found[:8]}" if found else "a checkpoint that names no run"
            yield f"save_to={folder} holds {holds}, and this is run {name}; remove it, or choose another folder"
        other, its_identity = first.setdefault(folder, (name, identity))
        if its_identity != identity:
            yield f"save_to={folder} is wanted by two runs, {other} and {name}; give each a folder of its own"
