"""The product in torch: one batched product over the blocks, one product across them."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

LowRank: TypeAlias = tuple[Tensor, Tensor]  # U and V of x + (x U) V^T, (n, r) each


def block_product_reference(
    x: Tensor, blocks: Tensor, first: Tensor | None = None, low_rank: LowRank | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """`block_product` in `dtype`, which the result has; by default float32 (float64 for float64 x) and the result x's.

    All tokens meet a block in one matrix product, which reads and writes them in strides; R1 then takes one a token.
    """
    work = dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32)
    n1, n2 = blocks.shape[:2]
    rows = x.reshape(-1, n1 * n2).to(work)
    if low_rank is not None:
        u, v = (side.to(work) for side in low_rank)
        rows = torch.addmm(rows, rows @ u, v.T)
    y = torch.bmm(rows.view(-1, n1, n2).transpose(0, 1), blocks.to(work)).transpose(0, 1)  # [T, n1, n2]
    if first is not None:
        y = first.to(work).T @ y
    return y.reshape(x.shape).to(dtype or x.dtype)
