# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernels of int4_matmul, in a prefill and a decode form; imports Triton, as triton_tile.py does."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tile import accumulate, finish, rows_of_tile


@triton.jit
def prefill_kernel(
    p_w, p_w_scale, p_w_zero, p_sums, p_x, p_x_scale, p_x_zero, p_bias, p_residual, p_y,
    T, stride_x, T_BUCKET,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, GROUP_B: tl.constexpr,
    X_PACKED: tl.constexpr, X_FLIP: tl.constexpr, X_ASM: tl.constexpr, W_FLIP: tl.constexpr, W_ASM: tl.constexpr,
    UNIT: tl.constexpr, HAS_W_ZERO: tl.constexpr, HAS_X_ZERO: tl.constexpr, X_SHIFT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    PROGRAMS_PER_SM: tl.constexpr, TILES_PER_BAND: tl.constexpr = 8,
):  # fmt: skip
    """Y^T = W X^T, one tile [BLOCK_O, BLOCK_T] at a time: unpacked weights are the operand that registers may hold."""
    D_B: tl.constexpr = D_IN // 2
    BLOCKS: tl.constexpr = D_B // GROUP_B * ((GROUP_B + BLOCK_D - 1) // BLOCK_D)
    TILES_O: tl.constexpr = (D_OUT + BLOCK_O - 1) // BLOCK_O
    tiles_t = tl.cdiv(T, BLOCK_T)
    row_x = tl.full([], stride_x, tl.int64)
    for i_tile in range(tl.program_id(0), TILES_O * tiles_t, tl.num_programs(0)):
        o_o, o_t = rows_of_tile(i_tile, tiles_t, TILES_O, BLOCK_O, BLOCK_T, TILES_PER_BAND)
        # fmt: off
        b_acc = accumulate(
            p_w, p_w_scale, p_w_zero, p_x, o_o, o_t, T, row_x, 0, BLOCKS, D_IN, D_OUT, GROUP_B,
            BLOCK_O, BLOCK_T, BLOCK_D, X_PACKED, X_FLIP, X_ASM, W_FLIP, W_ASM, HAS_W_ZERO, "", "", False,
        )
        finish(
            b_acc, p_w_scale, p_sums, p_x_scale, p_x_zero, p_bias, p_residual, p_y, o_o, o_t, T,
            D_OUT, UNIT, D_B // GROUP_B > 1, HAS_X_ZERO, X_SHIFT, HAS_BIAS, HAS_RESIDUAL,
        )
        # fmt: on


@triton.jit
def decode_kernel(
    p_w, p_w_scale, p_w_zero, p_sums, p_x, p_x_scale, p_x_zero, p_bias, p_residual, p_y,
    p_partial, p_arrived,
    T, stride_x, T_BUCKET,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, GROUP_B: tl.constexpr,
    X_PACKED: tl.constexpr, X_FLIP: tl.constexpr, X_ASM: tl.constexpr, W_FLIP: tl.constexpr, W_ASM: tl.constexpr,
    UNIT: tl.constexpr, HAS_W_ZERO: tl.constexpr, HAS_X_ZERO: tl.constexpr, X_SHIFT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr, PROGRAMS_PER_SM: tl.constexpr,
):  # fmt: skip
    """Y^T = W X^T for T <= BLOCK_T tokens, each row of W in SPLIT parts; the last part of a tile to be done adds all.

    p_partial [i_o, i_s, BLOCK_O, BLOCK_T] has the accumulators' dtype; p_arrived [i_o] is 0 before and after a launch.
    """
    D_B: tl.constexpr = D_IN // 2
    BLOCKS: tl.constexpr = D_B // GROUP_B * ((GROUP_B + BLOCK_D - 1) // BLOCK_D)
    PART: tl.constexpr = (BLOCKS + SPLIT - 1) // SPLIT
    i_o = tl.program_id(0)
    i_s = tl.program_id(1)
    o_o = i_o * BLOCK_O + tl.arange(0, BLOCK_O)
    o_t = tl.arange(0, BLOCK_T)
    row_x = tl.full([], stride_x, tl.int64)
    # fmt: off
    b_acc = accumulate(
        p_w, p_w_scale, p_w_zero, p_x, o_o, o_t, T, row_x, i_s * PART, tl.minimum(i_s * PART + PART, BLOCKS),
        D_IN, D_OUT, GROUP_B, BLOCK_O, BLOCK_T, BLOCK_D, X_PACKED, X_FLIP, X_ASM, W_FLIP, W_ASM, HAS_W_ZERO,
        "evict_first", "evict_last", True,
    )
    # fmt: on
    last = True
    if SPLIT > 1:
        o_p = tl.arange(0, BLOCK_O)[:, None] * BLOCK_T + o_t[None, :]
        p_tile = p_partial + i_o * (SPLIT * BLOCK_O * BLOCK_T) + o_p
        tl.store(p_tile + i_s * (BLOCK_O * BLOCK_T), b_acc, cache_modifier=".cg")
        tl.debug_barrier()  # every thread's sums are stored before one thread says so
        last = tl.atomic_add(p_arrived + i_o, 1, sem="acq_rel") == SPLIT - 1
    if last:
        if SPLIT > 1:
            tl.store(p_arrived + i_o, 0)
            b_acc = tl.zeros_like(b_acc)
            for i in range(SPLIT):
                b_acc += tl.load(p_tile + i * (BLOCK_O * BLOCK_T), cache_modifier=".cg")
        # fmt: off
        finish(
            b_acc, p_w_scale, p_sums, p_x_scale, p_x_zero, p_bias, p_residual, p_y, o_o, o_t, T,
            D_OUT, UNIT, D_B // GROUP_B > 1, HAS_X_ZERO, X_SHIFT, HAS_BIAS, HAS_RESIDUAL,
        )
        # fmt: on
