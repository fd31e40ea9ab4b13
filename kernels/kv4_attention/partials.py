"""How many parts a row's positions are split into, and the buffers of their results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backend import sm_count

_LEAST_POSITIONS = 256  # of a part, where the cache is full: fewer would leave a program nothing to overlap
_PROGRAMS_PER_SM = 4
_MOST_SPLITS = 64


class Kv4Partials(NamedTuple):
    """What the parts of a split attention leave for the second pass; contents mean nothing afterwards."""

    values: Tensor  # float32 (B, H, splits, D), a part's normalized output
    lse: Tensor  # float32 (B, H, splits), log2 of its sum of exponentials


def kv4_partials(q: Tensor, splits: int) -> Kv4Partials:
    """Buffers for q (B, H, D)."""
    batch, heads, head_dim = q.shape
    values = torch.empty((batch, heads, splits, head_dim), dtype=torch.float32, device=q.device)
    return Kv4Partials(values, torch.empty((batch, heads, splits), dtype=torch.float32, device=q.device))


def split_count(rows: int, capacity: int, device: torch.device) -> int:
    """Parts that fill the GPU with programs: rows (batch times KV heads) and capacity decide, never the lengths."""
    wanted = -(-_PROGRAMS_PER_SM * sm_count(device) // rows)
    return max(1, min(wanted, -(-capacity // _LEAST_POSITIONS), _MOST_SPLITS))
