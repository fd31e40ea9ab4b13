"""What is timed, and what is made of the times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..backend import Backend

Kind = Literal["rate", "bandwidth", "speedup", "extra", "latency", "memory"]


@dataclass(frozen=True)
class Place:
    """Device of all operands, and backend of our kernels: a GPU and Triton; in tests, a CPU and torch or Triton."""

    device: str
    backend: Backend

    def normal(self, seed: int, *shape: int) -> Tensor:
        """bfloat16 numbers of a normal distribution; the same for the same seed and shape."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=torch.bfloat16)

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """A buffer for results."""
        return torch.empty(shape, device=self.device, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """One thing that is timed; `make` takes a place and a seed and returns a call on random operands of its own."""

    name: str  # operation, shape and tokens; unique, so that a case several rows need is timed once
    make: Callable[[Place, int], Callable[[], Any]] = field(compare=False)
    bytes: int  # that a call must at least read and write
    flops: int = 0  # operations of a call, 2 for each multiply-add; 0 where bytes decide
    tuned: bool = False  # whether it is a kernel of ours, which `--tune` is to tune


@dataclass(frozen=True)
class Row:
    """A line of the result: a case beside a yardstick. Its kind says what its ratio is:

    "rate": none; the case is a yardstick itself, given in operations (or, without any, bytes) a second.
    "bandwidth": bytes a second of the case over those of the yardstick.
    "speedup": time of the yardstick over that of the case; with equal operations also the ratio of rates.
    "extra": time of the case over that of the yardstick, less 1.
    "latency": microseconds of the case; no yardstick.
    "memory": bytes of the yardstick over those of the case; nothing is timed.
    """

    name: str
    case: Case
    kind: Kind
    yardstick: Case | None = None
    target: str | None = None  # key of targets.TARGETS, None where the row only informs
