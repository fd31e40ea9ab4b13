# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""What the kernels of all forms do with a tile [BLOCK_O, BLOCK_T] of Y^T = W X^T; imported by kernels alone."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(b_packed, FLIP: tl.constexpr, ASM: tl.constexpr):
    """16 times the levels in the low and the high nibbles: (b << 4) ^ FLIP and (b & 0xF0) ^ FLIP, int8 (README.md)."""
    if ASM == "":
        b_even = (b_packed << 4) ^ FLIP
        b_odd = (b_packed & -16) ^ FLIP
    else:
        b_even, b_odd = tl.inline_asm_elementwise(
            ASM, "=r,=r,r", [b_packed], dtype=(tl.int8, tl.int8), is_pure=True, pack=4
        )
    return b_even, b_odd


@triton.jit
def rows_of_tile(
    i_tile, tiles_t,
    TILES_O: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr, TILES_PER_BAND: tl.constexpr,
):  # fmt: skip
    """Rows of W and tokens of a tile: a band of tiles along the tokens for each tile of weights, so that what runs at a
    time shares both in L2.
    """
    i_band = i_tile // (TILES_PER_BAND * TILES_O)
    i_in_band = i_tile % (TILES_PER_BAND * TILES_O)
    width = tl.minimum(tiles_t - i_band * TILES_PER_BAND, TILES_PER_BAND)
    o_t = (i_band * TILES_PER_BAND + i_in_band % width) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_o = (i_in_band // width) * BLOCK_O + tl.arange(0, BLOCK_O)
    return o_o, o_t


@triton.jit
def accumulate(
    p_w, p_w_scale, p_w_zero, p_x,
    o_o, o_t, T, row_x, i_first, i_last,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, GROUP_B: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    X_PACKED: tl.constexpr, X_FLIP: tl.constexpr, X_ASM: tl.constexpr, W_FLIP: tl.constexpr, W_ASM: tl.constexpr,
    HAS_W_ZERO: tl.constexpr, W_POLICY: tl.constexpr, X_POLICY: tl.constexpr, MASK_T: tl.constexpr,
):  # fmt: skip
    """Sum over the blocks i_first..i_last - 1 of BLOCK_D bytes of each row, [BLOCK_O, BLOCK_T], in units of 1 / 16 or
    (packed x) 1 / 256: int32; float32 where weights have zeros or groups, whose scales are then in it.
    """
    D_B: tl.constexpr = D_IN // 2
    GROUPS: tl.constexpr = D_B // GROUP_B
    PER_GROUP: tl.constexpr = (GROUP_B + BLOCK_D - 1) // BLOCK_D
    EVEN: tl.constexpr = GROUP_B % BLOCK_D == 0
    FLOAT: tl.constexpr = HAS_W_ZERO or GROUPS > 1
    o_d = tl.arange(0, BLOCK_D)
    # weight rows beyond the end read row 0, and so do tokens without MASK_T; they are not stored
    o_row = tl.where(o_o < D_OUT, o_o, 0).to(tl.int64)
    o_token = tl.where(o_t < T, o_t, 0).to(tl.int64)
    p_rows = p_w + o_row[:, None] * D_B + o_d[None, :]
    p_tokens = p_x + o_token[:, None] * row_x + o_d[None, :]
    m_t = (o_t < T)[:, None]
    b_acc = tl.zeros((BLOCK_O, BLOCK_T), tl.float32 if FLOAT else tl.int32)
    for i_d in range(i_first, i_last):
        if EVEN:
            b_packed = tl.load(p_rows + i_d * BLOCK_D, eviction_policy=W_POLICY)
            if MASK_T:
                b_x_even = tl.load(p_tokens + i_d * BLOCK_D, mask=m_t, other=0, eviction_policy=X_POLICY)
                if not X_PACKED:
                    b_x_odd = tl.load(p_tokens + i_d * BLOCK_D + D_B, mask=m_t, other=0, eviction_policy=X_POLICY)
            else:
                b_x_even = tl.load(p_tokens + i_d * BLOCK_D, eviction_policy=X_POLICY)
                if not X_PACKED:
                    b_x_odd = tl.load(p_tokens + i_d * BLOCK_D + D_B, eviction_policy=X_POLICY)
        else:
            o_tail = (i_d % PER_GROUP) * BLOCK_D
            o_start = (i_d // PER_GROUP) * GROUP_B + o_tail
            m_d = (o_tail + o_d < GROUP_B)[None, :]
            b_packed = tl.load(p_rows + o_start, mask=m_d, other=0)
            m_x = m_d & m_t if MASK_T else m_d
            b_x_even = tl.load(p_tokens + o_start, mask=m_x, other=0)
            if not X_PACKED:
                b_x_odd = tl.load(p_tokens + o_start + D_B, mask=m_x, other=0)
        if X_PACKED:  # what was loaded holds both
            b_x_even, b_x_odd = halves(b_x_even, X_FLIP, X_ASM)
            if not EVEN:  # no byte stands for two levels 0 on the mid-rise grid
                b_x_even = tl.where(m_d, b_x_even, 0).to(tl.int8)
                b_x_odd = tl.where(m_d, b_x_odd, 0).to(tl.int8)
        b_w_even, b_w_odd = halves(b_packed, W_FLIP, W_ASM)
        if FLOAT:
            b_sum = tl.dot(b_w_even, tl.trans(b_x_even), out_dtype=tl.int32)
            b_sum = tl.dot(b_w_odd, tl.trans(b_x_odd), b_sum, out_dtype=tl.int32).to(tl.float32)
            o_group = o_row * GROUPS + i_d // PER_GROUP
            if HAS_W_ZERO:
                b_tokens = tl.sum(b_x_even.to(tl.int32), 1) + tl.sum(b_x_odd.to(tl.int32), 1)
                b_zero = (tl.load(p_w_zero + o_group).to(tl.float32) - 8.0) * 16.0
                b_sum -= b_zero[:, None] * b_tokens.to(tl.float32)[None, :]
            if GROUPS > 1:
                b_sum *= tl.load(p_w_scale + o_group).to(tl.float32)[:, None]
            b_acc += b_sum
        else:
            b_acc = tl.dot(b_w_even, tl.trans(b_x_even), b_acc, out_dtype=tl.int32)
            b_acc = tl.dot(b_w_odd, tl.trans(b_x_odd), b_acc, out_dtype=tl.int32)
    return b_acc


@triton.jit
def finish(
    b_acc, p_w_scale, p_sums, p_x_scale, p_x_zero, p_bias, p_residual, p_y,
    o_o, o_t, T,
    D_OUT: tl.constexpr, UNIT: tl.constexpr, GROUPED: tl.constexpr,
    HAS_X_ZERO: tl.constexpr, X_SHIFT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """y = (acc UNIT - z sums) s_w s_x + bias + residual, stored at tokens o_t and output features o_o."""
    m_o = o_o < D_OUT
    m_t = o_t < T
    m_y = m_o[:, None] & m_t[None, :]
    b_y = b_acc.to(tl.float32) * UNIT
    if HAS_X_ZERO or X_SHIFT != 0.0:
        b_zero = tl.zeros_like(o_t).to(tl.float32) + X_SHIFT
        if HAS_X_ZERO:
            b_zero += tl.load(p_x_zero + o_t, mask=m_t, other=0.0).to(tl.float32)
        b_y -= tl.load(p_sums + o_o, mask=m_o, other=0.0)[:, None] * b_zero[None, :]
    if not GROUPED:
        b_y *= tl.load(p_w_scale + o_o, mask=m_o, other=0.0).to(tl.float32)[:, None]
    b_y *= tl.load(p_x_scale + o_t, mask=m_t, other=0.0).to(tl.float32)[None, :]
    o_y = o_t.to(tl.int64)[None, :] * D_OUT + o_o[:, None]
    if HAS_BIAS:
        b_y += tl.load(p_bias + o_o, mask=m_o, other=0.0).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        b_y += tl.load(p_residual + o_y, mask=m_y, other=0.0).to(tl.float32)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)
