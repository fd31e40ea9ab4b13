"""How a command line ends: one clear line for a mistake or a failure, and never a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sq.errors import ConfigError, SQError
from sq.models.device import pick_device
from sq.models.place import is_hub_id

if TYPE_CHECKING:
    import torch

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
TRACEBACK = "SINGLEQUANT_TRACEBACK"  # an environment variable: 1 shows where an error came from


class Mistake(SQError):
    """A command line that cannot be meant."""


def picked_device(name: str) -> torch.device:
    """The torch device of a command's --device; Mistake for one that is not there."""
    try:
        return pick_device(name, "--device")
    except ConfigError as error:
        raise Mistake(error.problems[0]) from error


def refuse_no_model(folder: str) -> None:
    """Raise Mistake for what is neither a model folder nor has the form of a name on the hub."""
    path = Path(folder)
    if not (path / "config.json").is_file() and (path.exists() or not is_hub_id(folder)):
        raise Mistake(f"{folder} has no config.json: give a folder that `python run.py save_to=FOLDER` wrote")


def ended(program: str, run: Callable[[], int | None]) -> int:
    """Run a command and return its exit status: 2 for a mistake in it, 1 for a failure, 130 for Ctrl-C.

    The reason goes to stderr in one line; all mistakes of a config, one line each.
    """
    try:
        return run() or DONE
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1":
            traceback.print_exc()
        mistake = isinstance(error, (Mistake, ConfigError))
        text = str(error) if isinstance(error, ConfigError) else " ".join(str(error).split())
        kind = "" if isinstance(error, (SQError, OSError)) else f"{type(error).__name__}: "
        hint = "" if mistake or isinstance(error, (SQError, OSError)) else f" ({TRACEBACK}=1 shows where)"
        print(f"{program}: {kind}{text or type(error).__name__}{hint}", file=sys.stderr)
        return MISTAKE if mistake else FAILED
