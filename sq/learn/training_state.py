"""The state of a training on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sq.errors import FileError
from sq.io import read_safetensors, write_safetensors

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """A training after `step` steps: the tensors that the next step reads, and the records of the log."""

    step: int
    tensors: dict[str, Tensor]
    records: list[dict[str, Any]] = field(default_factory=list)


class TrainingStateFile:
    """The file of the newest state, replaced as a whole every `interval` steps; without a path nothing is kept.

    `settings` say in words all that determines the training; a state that was saved under others is not read.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], interval: int) -> None:
        self.path, self.interval = path, interval
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def save(self, state: TrainingState) -> None:
        """Write the state."""
        if self.path is None:
            return
        words = {"settings": self.settings, "step": state.step, "records": state.records}
        write_safetensors(self.path, state.tensors, {key: json.dumps(value) for key, value in words.items()})

    def load(self, device: torch.device | str = "cpu") -> TrainingState | None:
        """The state that was saved, or None where there is none to go on from.

        The log gets a warning about a file that cannot be read or was saved under other settings; `save` replaces it.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            tensors, words = read_safetensors(self.path, device)
            saved, step, records = (json.loads(words[key]) for key in ("settings", "step", "records"))
        except (OSError, SafetensorError, FileError, KeyError, json.JSONDecodeError) as error:
            logger.warning("%s cannot be read (%s); the training starts anew", self.path, error)
            return None
        if saved != self.settings:
            keys = sorted(key for key in {*saved, *self.settings} if saved.get(key) != self.settings.get(key))
            logger.warning("%s is of a training with other %s; this one starts anew", self.path, ", ".join(keys))
            return None
        return TrainingState(step, tensors, records)
