"""RoPE in torch, in front of attention."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (-x_2, x_1) sin of halves x = (x_1, x_2), in x's dtype with every product and the sum rounded to it.

    x (B, heads, N, D); cos and sin (B or 1, N, D), the same for all heads: as Llama's modules have them.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
