"""The Hadamard transform in torch: two products per token, with H_{2^m} as butterflies."""

from __future__ import annotations

import torch
from torch import Tensor


def hadamard_reference(x: Tensor, base: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`hadamard` in `dtype`, which the result has; by default float32 (float64 for float64 x) and the result x's."""
    work = dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32)
    k, n = base.shape[0], x.shape[-1]
    rows = x.reshape(-1, n).to(work) * n**-0.5
    width = 1
    while width < n // k:
        pairs = rows.reshape(-1, n // (2 * width), 2, width)  # [T, n / 2w, 2, w]
        first, second = pairs.unbind(2)
        rows = torch.stack((first + second, first - second), dim=2)
        width *= 2
    y: Tensor = base.to(rows).T @ rows.reshape(-1, k, n // k)  # [T, K, 2^m]
    return y.reshape(x.shape).to(dtype or x.dtype)
