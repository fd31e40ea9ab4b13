# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernels of int4_matmul's workspace form: weights to bytes in one launch, then a product of bytes alone."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tile import finish, halves, rows_of_tile


@triton.jit
def widen_kernel(
    p_w, p_wide,
    D_B: tl.constexpr, W_FLIP: tl.constexpr, W_ASM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row i_o of W as bytes, 16 times the levels: those of the low nibbles, then those of the high ones."""
    i_o = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D_B
    b_even, b_odd = halves(tl.load(p_w + i_o * D_B + o_d, mask=m_d, other=0), W_FLIP, W_ASM)
    p_row = p_wide + i_o * (2 * D_B)
    tl.store(p_row + o_d, b_even, mask=m_d)
    tl.store(p_row + D_B + o_d, b_odd, mask=m_d)


@triton.jit
def workspace_kernel(
    p_wide, p_w_scale, p_sums, p_x, p_x_scale, p_x_zero, p_bias, p_residual, p_y,
    T, stride_x, T_BUCKET,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, UNIT: tl.constexpr, HAS_X_ZERO: tl.constexpr, X_SHIFT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    PROGRAMS_PER_SM: tl.constexpr, TILES_PER_BAND: tl.constexpr = 8,
):  # fmt: skip
    """Y^T = W X^T of bytes, one tile [BLOCK_O, BLOCK_T] at a time; both operands lie in shared memory."""
    BLOCKS: tl.constexpr = (D_IN + BLOCK_D - 1) // BLOCK_D
    TILES_O: tl.constexpr = (D_OUT + BLOCK_O - 1) // BLOCK_O
    tiles_t = tl.cdiv(T, BLOCK_T)
    row_x = tl.full([], stride_x, tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    for i_tile in range(tl.program_id(0), TILES_O * tiles_t, tl.num_programs(0)):
        o_o, o_t = rows_of_tile(i_tile, tiles_t, TILES_O, BLOCK_O, BLOCK_T, TILES_PER_BAND)
        # rows beyond the end read row 0; they are not stored
        p_rows = p_wide + tl.where(o_o < D_OUT, o_o, 0).to(tl.int64)[:, None] * D_IN + o_d[None, :]
        p_tokens = p_x + tl.where(o_t < T, o_t, 0).to(tl.int64)[:, None] * row_x + o_d[None, :]
        b_acc = tl.zeros((BLOCK_O, BLOCK_T), tl.int32)
        for i_d in range(BLOCKS):
            if D_IN % BLOCK_D == 0:
                b_w = tl.load(p_rows + i_d * BLOCK_D)
                b_x = tl.load(p_tokens + i_d * BLOCK_D)
            else:
                m_d = (i_d * BLOCK_D + o_d < D_IN)[None, :]
                b_w = tl.load(p_rows + i_d * BLOCK_D, mask=m_d, other=0)
                b_x = tl.load(p_tokens + i_d * BLOCK_D, mask=m_d, other=0)
            b_acc = tl.dot(b_w, tl.trans(b_x), b_acc, out_dtype=tl.int32)
        finish(
            b_acc, p_w_scale, p_sums, p_x_scale, p_x_zero, p_bias, p_residual, p_y, o_o, o_t, T,
            D_OUT, UNIT, False, HAS_X_ZERO, X_SHIFT, HAS_BIAS, HAS_RESIDUAL,
        )  # fmt: skip
