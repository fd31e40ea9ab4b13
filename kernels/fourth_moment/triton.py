# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernel of a step of fourth-moment rotations; the only module of this folder that imports Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import power_of_two_from, sm_count

LARGEST_BLOCK = 2048  # tokens at a time; in float64 their three sums take 12,288 registers


@triton.jit
def turn_pairs_kernel(
    p_rows, p_turned, p_pairs,
    T, M, P,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One pair: its sums over all tokens, its angle, then both rows and both rows of what is turned with them."""
    i_p = tl.program_id(0) % P
    i_b = (tl.program_id(0) // P).to(tl.int64)
    i_left = i_b * M + tl.load(p_pairs + i_p).to(tl.int64)
    i_right = i_b * M + tl.load(p_pairs + P + i_p).to(tl.int64)
    p_left, p_right = p_rows + i_left * T, p_rows + i_right * T
    o_t = tl.arange(0, BLOCK_T)
    b_difference = tl.zeros([BLOCK_T], dtype=tl.float64)  # of A and C
    b_twice = tl.zeros([BLOCK_T], dtype=tl.float64)  # 2 B
    for i_t in range(0, T, BLOCK_T):
        m_t = i_t + o_t < T
        b_x = tl.load(p_left + i_t + o_t, mask=m_t, other=0.0).to(tl.float64)
        b_y = tl.load(p_right + i_t + o_t, mask=m_t, other=0.0).to(tl.float64)
        b_p = b_x * b_y
        b_q = (b_y * b_y - b_x * b_x) * 0.5
        b_difference += b_p * b_p - b_q * b_q
        b_twice += 2 * (b_p * b_q)
    c, s = _quarter_angle(tl.sum(b_difference, axis=0), tl.sum(b_twice, axis=0))
    low_c, low_s = c.to(tl.float32), s.to(tl.float32)
    for i_t in range(0, T, BLOCK_T):
        m_t = i_t + o_t < T
        b_x = tl.load(p_left + i_t + o_t, mask=m_t, other=0.0)
        b_y = tl.load(p_right + i_t + o_t, mask=m_t, other=0.0)
        tl.store(p_left + i_t + o_t, low_c * b_x + low_s * b_y, mask=m_t)
        tl.store(p_right + i_t + o_t, low_c * b_y - low_s * b_x, mask=m_t)
    p_u, p_v = p_turned + i_left * M, p_turned + i_right * M
    o_m = tl.arange(0, BLOCK_M)
    for i_m in range(0, M, BLOCK_M):
        m_m = i_m + o_m < M
        b_u = tl.load(p_u + i_m + o_m, mask=m_m, other=0.0)
        b_v = tl.load(p_v + i_m + o_m, mask=m_m, other=0.0)
        tl.store(p_u + i_m + o_m, c * b_u + s * b_v, mask=m_m)
        tl.store(p_v + i_m + o_m, c * b_v - s * b_u, mask=m_m)


@triton.jit
def _quarter_angle(u, v):
    """cos and sin of atan2(v, u) / 4 in float64, by halving the angle twice; 1 and 0 where both are 0."""
    size = tl.maximum(tl.abs(u), tl.abs(v))
    none = size == 0.0
    u = tl.where(none, 1.0, u / tl.where(none, 1.0, size))  # no square overflows or vanishes
    v = tl.where(none, 0.0, v / tl.where(none, 1.0, size))
    length = tl.sqrt(u * u + v * v)
    # Of the half angle the larger of cos and |sin| comes from a sum without cancellation, the other one from sin(2a).
    larger = tl.sqrt((length + tl.abs(u)) / (2 * length))
    smaller = v / (2 * length * larger)
    turns = u < 0
    half_c = tl.where(turns, tl.abs(smaller), larger)
    half_s = tl.where(turns, tl.where(v < 0, -larger, larger), smaller)
    c = tl.sqrt((1 + half_c) * 0.5)
    return c, half_s / (2 * c)


def launch(rows: Tensor, turned: Tensor, pairs: Tensor) -> None:
    """turn_pairs of checked, non-empty arguments. It writes in place, so no launch is tried twice to be tuned."""
    batch, m, tokens = rows.shape
    programs = batch * pairs.shape[1]
    block = power_of_two_from(min(tokens, LARGEST_BLOCK), 128)
    # Fewer pairs than SMs: only more threads a pair keep enough reads in flight.
    warps = min(block // 128, 16 if programs < sm_count(rows.device) else 8)
    with torch.cuda.device_of(rows):  # Triton launches on the current device
        turn_pairs_kernel[(programs,)](
            rows, turned, pairs, tokens, m, pairs.shape[1],
            BLOCK_T=block, BLOCK_M=min(power_of_two_from(m, 128), 128 * warps), num_warps=warps,
        )  # fmt: skip
