"""What a step of a training uses, from its number alone: the learning rate and the calibration windows."""

from __future__ import annotations

from math import cos, pi
from typing import Literal, get_args

import torch

Decay = Literal["linear", "cosine"]


def decayed(lr: float, decay: Decay, step: int, steps: int) -> float:
    """Learning rate of step t of T, t from 0: lr (1 - t / T), or lr (1 + cos(pi t / T)) / 2."""
    if decay not in get_args(Decay):
        raise ValueError(f"decay={decay!r}; allowed: {', '.join(get_args(Decay))}")
    share = step / steps
    return lr * (1 - share) if decay == "linear" else lr * (1 + cos(pi * share)) / 2


def windows_of_step(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Indices of the windows of one step: all `count` are dealt in a random order, then all again in another.

    They depend on the arguments alone, so that an interrupted training goes on with the windows it would have had. At
    most `count` windows, each once.
    """
    batch = min(batch, count)
    wanted = range(step * batch, (step + 1) * batch)
    dealt = {turn: _order(turn, count, seed) for turn in {i // count for i in wanted}}
    return list(dict.fromkeys(dealt[i // count][i % count] for i in wanted))


def _order(turn: int, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
