# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""The separate scaling that a fused epilogue is compared with, as one kernel. Imports Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def scale_kernel(p_sums, p_x_scale, p_w_scale, p_y, D_OUT: tl.constexpr, BLOCK_O: tl.constexpr):
    """y_to = sums_to s_t s_o, BLOCK_O outputs of one token."""
    i_t = tl.program_id(0).to(tl.int64)
    o_o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = o_o < D_OUT
    b_y = tl.load(p_sums + i_t * D_OUT + o_o, mask=m_o, other=0).to(tl.float32) * tl.load(p_x_scale + i_t)
    b_y *= tl.load(p_w_scale + o_o, mask=m_o, other=0.0)
    tl.store(p_y + i_t * D_OUT + o_o, b_y.to(p_y.dtype.element_ty), mask=m_o)


def scale(sums: Tensor, x_scale: Tensor, w_scale: Tensor, y: Tensor) -> Tensor:
    """y (T, d_out) of int32 sums (T, d_out), x_scale (T, 1) and w_scale (d_out, 1)."""
    tokens, d_out = sums.shape
    with torch.cuda.device_of(y):  # Triton launches on the current device
        scale_kernel[tokens, triton.cdiv(d_out, 2048)](sums, x_scale, w_scale, y, D_OUT=d_out, BLOCK_O=2048)
    return y
