"""Errors that name what was got, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class SQError(ValueError):
    """Base of every error that this package raises on purpose."""


class ConfigError(SQError):
    """All mistakes of one configuration, shown together before anything is loaded.

    Args:
        problems: one sentence a mistake.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        head = "1 mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        lines = [f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1)]
        super().__init__(f"the configuration has {head}:\n" + "\n".join(lines))


class FileError(SQError):
    """A file that is missing, cannot be read or is damaged; the message names it."""


class CheckpointError(SQError):
    """A model folder, safetensors or GGUF file that cannot be used: missing, truncated, or carrying NaN or inf."""


class DataError(SQError):
    """A text that cannot be read or is too short for the wanted tokens."""


class CalibrationError(SQError):
    """Calibration statistics that cannot be used; the message names layer and site."""


class TrainingError(SQError):
    """A training that diverged; the message names step, layer and setting."""


class EvaluationError(SQError):
    """A measurement that says nothing: NaN or inf in hidden states, logits or scores, or a model that knows nothing."""


class QuantizationError(SQError):
    """A quantization that cannot be done, such as a Hessian that cannot be factored."""
