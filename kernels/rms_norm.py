"""RMSNorm as transformers' models compute it."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor | None, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """x (..., n) / sqrt(mean(x^2) + eps), rounded to x's dtype, then times the gain (n,), None for none.

    `dtype` is that of the arithmetic in front of the gain. Where the gain has another dtype than x, the product has the
    wider one of the two.
    """
    wide = x.to(dtype)
    normalized = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return normalized if gain is None else gain * normalized
