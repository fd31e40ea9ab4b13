"""RMSNorm as transformers' models compute it."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor | None, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """x / sqrt(mean(x^2) + eps), rounded to x's dtype, then times the gain.

    Args:
        x: (..., n), floating point.
        gain: (n,); None for none. Where its dtype is another than x's, the product has the wider one.
        eps: added to the mean square.
        dtype: of the arithmetic in front of the gain.
    """
    wide = x.to(dtype)
    normalized = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return normalized if gain is None else gain * normalized
