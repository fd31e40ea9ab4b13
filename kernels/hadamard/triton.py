# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernels of the Hadamard transform; the only module of this folder that imports Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import power_of_two_from
from ..tuning import autotune, compute_dtype, start, token_bucket
from .tiles import DENSE_TOKENS, tile_shape


@triton.jit
def _negative(o_row, o_column):
    """Where Sylvester's matrix is -1: popcount(row & column) is odd. For orders up to 2^16."""
    b_parity = o_row & o_column
    b_parity = b_parity ^ (b_parity >> 8)
    b_parity = b_parity ^ (b_parity >> 4)
    b_parity = b_parity ^ (b_parity >> 2)
    b_parity = b_parity ^ (b_parity >> 1)
    return (b_parity & 1) == 1


@triton.jit
def _entries(p_base, o_row, o_column, K: tl.constexpr, POWERS: tl.constexpr):
    """H_K (x) H_POWERS at (row, column), 0 outside."""
    m_h = (o_row < K * POWERS) & (o_column < K * POWERS)
    b_base = tl.load(p_base + (o_row // POWERS) * K + o_column // POWERS, mask=m_h, other=0.0)
    return tl.where(_negative(o_row % POWERS, o_column % POWERS), -b_base, b_base)


@autotune
@triton.jit
def hadamard_tile_kernel(
    p_x, p_base, p_y,
    T, stride_x, T_BUCKET,
    K: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_N1: tl.constexpr, BLOCK_N2: tl.constexpr,
    SCALE_1: tl.constexpr, SCALE_2: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, COMPUTE: tl.constexpr, PROGRAMS_PER_SM: tl.constexpr,
):  # fmt: skip
    """Y = (H_K (x) H_{N1 / K})^T X H_N2 / sqrt(N1 N2), one token X [N1, N2] at a time."""
    o_1 = tl.arange(0, BLOCK_N1)
    o_2 = tl.arange(0, BLOCK_N2)
    b_left = _entries(p_base, o_1[None, :], o_1[:, None], K, N1 // K).to(COMPUTE)  # transposed
    b_right = tl.where(_negative(o_2[:, None], o_2[None, :]), -1.0, 1.0).to(COMPUTE)  # meets zeros of X beyond N2
    o_x = o_1[:, None] * N2 + o_2[None, :]
    m_x = (o_1[:, None] < N1) & (o_2[None, :] < N2)
    row_x = tl.full([], stride_x, tl.int64)
    row_y = tl.full([], N1 * N2, tl.int64)
    for i_t in range(tl.program_id(0), T, tl.num_programs(0)):
        b_x = tl.load(p_x + i_t * row_x + o_x, mask=m_x, other=0.0).to(COMPUTE)
        # SCALE_1 is a power of two, which rounds nothing, and keeps entries below |x| sqrt(N1) in float16
        b_z = (tl.dot(b_left, b_x, input_precision="ieee") * SCALE_1).to(COMPUTE)
        b_y = tl.dot(b_z, b_right, input_precision="ieee") * SCALE_2
        tl.store(p_y + i_t * row_y + o_x, b_y.to(p_y.dtype.element_ty), mask=m_x)


@autotune
@triton.jit
def hadamard_dense_kernel(
    p_x, p_base, p_y,
    T, stride_x, T_BUCKET,
    K: tl.constexpr, N: tl.constexpr, BLOCK_N1: tl.constexpr, BLOCK_N2: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, COMPUTE: tl.constexpr, PROGRAMS_PER_SM: tl.constexpr,
):  # fmt: skip
    """Y = X (H_K (x) H_{N / K}) / sqrt(N) for BLOCK_N1 tokens X [BLOCK_N1, N] at a time."""
    o_1 = tl.arange(0, BLOCK_N1)
    o_2 = tl.arange(0, BLOCK_N2)
    b_h = _entries(p_base, o_2[:, None], o_2[None, :], K, N // K).to(COMPUTE)
    row_x = tl.full([], stride_x, tl.int64)
    row_y = tl.full([], N, tl.int64)
    for i_b in range(tl.program_id(0), tl.cdiv(T, BLOCK_N1), tl.num_programs(0)):
        o_t = i_b * BLOCK_N1 + o_1[:, None]
        m_x = (o_t < T) & (o_2[None, :] < N)
        b_x = tl.load(p_x + o_t * row_x + o_2[None, :], mask=m_x, other=0.0).to(COMPUTE)
        b_y = tl.dot(b_x, b_h, input_precision="ieee") * SCALE
        tl.store(p_y + o_t * row_y + o_2[None, :], b_y.to(p_y.dtype.element_ty), mask=m_x)


def launch(x: Tensor, base: Tensor, out: Tensor | None) -> Tensor:
    """hadamard(x, base) of checked, non-empty arguments whose tile fits."""
    k, n = base.shape[0], x.shape[-1]
    shape = tile_shape(k, n // k, x.element_size())
    if shape is None:
        raise ValueError(f"no tile fits {k} x {n // k} features")
    rows = x.reshape(-1, n)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    base = base.to(torch.float32).contiguous()
    tokens, (n1, n2) = rows.shape[0], shape
    # fmt: off
    common = {
        "T": tokens, "stride_x": rows.stride(0), "T_BUCKET": token_bucket(tokens), "K": k,
        "BLOCK_N2": power_of_two_from(n2, 16), "HAS_RIGHT": True, "COMPUTE": compute_dtype(x),
    }
    # fmt: on
    operands = (rows, base, y)
    if n1 == 1:
        block_1 = max(DENSE_TOKENS, 8192 // common["BLOCK_N2"])
        meta = {"N": n, "BLOCK_N1": block_1, "SCALE": n**-0.5, "HAS_LEFT": False}
        start(hadamard_dense_kernel, x, -(-tokens // block_1), *operands, **meta, **common)
    else:
        scale_1 = 2.0 ** -((n1.bit_length() + 1) // 2)
        meta = {"N1": n1, "N2": n2, "BLOCK_N1": power_of_two_from(n1, 16), "HAS_LEFT": True}
        meta |= {"SCALE_1": scale_1, "SCALE_2": n**-0.5 / scale_1}
        start(hadamard_tile_kernel, x, tokens, *operands, **meta, **common)
    return y
