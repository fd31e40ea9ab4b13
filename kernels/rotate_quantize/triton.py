# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernel of rotate_quantize; the only module of this folder that imports Triton."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import autotune, compute_dtype, start, token_bucket
from .tiles import block_sizes


@triton.jit
def _round(b_x):
    """Nearest integer, ties to even, of |x| < 2^22: adding 3 * 2^22 leaves no bit for a fraction."""
    return (b_x + 12582912.0) - 12582912.0


@triton.jit
def _grid(low, high, clip, SCHEME: tl.constexpr):
    """Scale and zero of a token that spans [low, high]; quotients are rounded as torch rounds them."""
    if SCHEME == "asymmetric":
        low = tl.minimum(low, 0.0) * clip
        high = tl.maximum(high, 0.0) * clip
        flat = tl.div_rn(high - low, 15.0) == 0.0
        low = tl.where(flat, -1.0, low)
        high = tl.where(flat, 1.0, high)
        scale = tl.div_rn(high - low, 15.0)
        zero = _round(tl.div_rn(-low, scale))
    elif SCHEME == "symmetric":
        scale = tl.div_rn(tl.maximum(-low, high) * clip, 7.0)
        scale = tl.where(scale == 0.0, 1.0, scale)
        zero = tl.zeros_like(scale)
    else:
        scale = tl.div_rn(tl.maximum(-low, high) * clip, 7.5)
        scale = tl.where(scale == 0.0, 7.888609052210118e-31, scale)  # 2^-100
        zero = tl.zeros_like(scale)
    return scale, zero


@triton.jit
def _nearest(b_v, zero, SCHEME: tl.constexpr):
    """Integer-valued q - zero of v = y / scale; clamping at integers before rounding is clamping after it."""
    if SCHEME == "midrise":
        b_v = tl.floor(tl.minimum(tl.maximum(b_v, -8.0), 7.0))
    elif SCHEME == "symmetric":
        b_v = _round(tl.minimum(tl.maximum(b_v, -8.0), 7.0))
    else:
        b_v = _round(tl.minimum(tl.maximum(b_v, 0.0 - zero), 15.0 - zero))
    return b_v


@triton.jit
def _squared_error(b_y, m_y, inverse, zero, SCHEME: tl.constexpr):
    """sum (y / scale - level)^2 over the entries of the mask: a padding zero is an error on the mid-rise grid."""
    b_v = b_y * inverse
    b_e = b_v - _nearest(b_v, zero, SCHEME)
    if SCHEME == "midrise":
        b_e = b_e - 0.5
    return tl.sum(tl.where(m_y, b_e * b_e, 0.0))


@triton.jit
def _largest_bits(b_y):
    """Bits of the largest |y|: as integers floats of one sign keep their order, with inf and then NaN on top."""
    return tl.max(tl.abs(b_y).to(tl.int32, bitcast=True))


@autotune
@triton.jit
def rotate_quantize_kernel(
    p_x,
    p_r1,
    p_r2,
    p_clips,
    p_codes,
    p_scale,
    p_zero,
    T,
    stride_x,
    T_BUCKET,
    N1: tl.constexpr,
    N2: tl.constexpr,
    BLOCK_N1: tl.constexpr,
    BLOCK_N2: tl.constexpr,
    SCHEME: tl.constexpr,
    CANDIDATES: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    COMPUTE: tl.constexpr,
    PROGRAMS_PER_SM: tl.constexpr,
):
    """Y = R1^T X R2, its grid and its packed codes, one token X [N1, N2] at a time.

    Y lives as two halves, the even and the odd columns: they are the low and the high nibbles of the bytes.
    """
    BLOCK_H: tl.constexpr = BLOCK_N2 // 2
    o_1 = tl.arange(0, BLOCK_N1)
    o_2 = tl.arange(0, BLOCK_N2)
    o_h = tl.arange(0, BLOCK_H)
    m_1 = o_1 < N1
    m_2 = o_2 < N2
    m_y = m_1[:, None] & (o_h[None, :] < N2 // 2)
    if HAS_LEFT:
        p_left = p_r1 + o_1[:, None] + o_1[None, :] * N1  # transposed
        b_left = tl.load(p_left, mask=m_1[:, None] & m_1[None, :], other=0.0).to(COMPUTE)
    if HAS_RIGHT:
        p_right = p_r2 + o_2[:, None] * N2 + 2 * o_h[None, :]
        m_right = m_2[:, None] & (o_h[None, :] < N2 // 2)
        b_even = tl.load(p_right, mask=m_right, other=0.0).to(COMPUTE)
        b_odd = tl.load(p_right + 1, mask=m_right, other=0.0).to(COMPUTE)
    row_x = tl.full([], stride_x, tl.int64)
    row_codes = tl.full([], N1 * N2 // 2, tl.int64)
    for i_t in range(tl.program_id(0), T, tl.num_programs(0)):
        p_token = p_x + i_t * row_x
        if HAS_RIGHT:
            o_x = o_1[:, None] * N2 + o_2[None, :]
            b_x = tl.load(p_token + o_x, mask=m_1[:, None] & m_2[None, :], other=0.0).to(COMPUTE)
            if HAS_LEFT:
                b_x = tl.dot(b_left, b_x, input_precision="ieee").to(COMPUTE)
            b_low = tl.dot(b_x, b_even, input_precision="ieee")
            b_high = tl.dot(b_x, b_odd, input_precision="ieee")
        else:
            o_x = o_1[:, None] * N2 + 2 * o_h[None, :]
            b_low = tl.load(p_token + o_x, mask=m_y, other=0.0).to(COMPUTE)
            b_high = tl.load(p_token + o_x + 1, mask=m_y, other=0.0).to(COMPUTE)
            if HAS_LEFT:
                b_low = tl.dot(b_left, b_low, input_precision="ieee")
                b_high = tl.dot(b_left, b_high, input_precision="ieee")
            b_low = b_low.to(tl.float32)
            b_high = b_high.to(tl.float32)

        # padding is 0 and the range holds 0, so only NaN and inf can come from it, and those are the token's own
        bits = tl.maximum(_largest_bits(b_low), _largest_bits(b_high))
        high = bits.to(tl.float32, bitcast=True)
        low = -high
        if SCHEME == "asymmetric":
            low = tl.minimum(tl.min(b_low), tl.min(b_high))
            high = tl.maximum(tl.max(b_low), tl.max(b_high))
        unit, zero = _grid(low, high, 1.0, SCHEME)
        finite = (bits < 0x7F800000) & (unit < float("inf"))
        low = tl.where(finite, low, 0.0)
        high = tl.where(finite, high, 0.0)
        b_low = tl.where(finite, b_low, 0.0)
        b_high = tl.where(finite, b_high, 0.0)

        clip = tl.load(p_clips)
        if CANDIDATES > 1:
            unit, zero = _grid(low, high, 1.0, SCHEME)
            least = tl.full([], float("inf"), tl.float32)
            for i_c in tl.static_range(CANDIDATES):  # unrolled: only an innermost loop's loads are prefetched
                candidate = tl.load(p_clips + i_c)
                scale, zero = _grid(low, high, candidate, SCHEME)
                inverse = tl.div_rn(1.0, scale)
                error = _squared_error(b_low, m_y, inverse, zero, SCHEME)
                error += _squared_error(b_high, m_y, inverse, zero, SCHEME)
                relative = tl.div_rn(scale, unit)
                cost = error * relative * relative
                clip = tl.where(cost < least, candidate, clip)
                least = tl.minimum(cost, least)
        scale, zero = _grid(low, high, clip, SCHEME)
        b_low = (_nearest(tl.div_rn(b_low, scale), zero, SCHEME) + zero).to(tl.int32) & 15
        b_high = (_nearest(tl.div_rn(b_high, scale), zero, SCHEME) + zero).to(tl.int32) & 15
        o_codes = o_1[:, None] * (N2 // 2) + o_h[None, :]
        tl.store(p_codes + i_t * row_codes + o_codes, (b_low | (b_high << 4)).to(tl.uint8), mask=m_y)
        tl.store(p_scale + i_t, tl.where(finite, scale, float("nan")))
        if SCHEME == "asymmetric":
            tl.store(p_zero + i_t, zero)


@lru_cache(maxsize=64)
def _clips_on(device: torch.device, clips: tuple[float, ...]) -> Tensor:
    """Candidates on the device: copied there once, since no copy from the host can be captured in a CUDA graph."""
    return torch.tensor(clips, dtype=torch.float32, device=device)


def launch(
    x: Tensor,
    r1: Tensor | None,
    r2: Tensor | None,
    sizes: tuple[int, int],
    scheme: str,
    clips: tuple[float, ...],
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
) -> None:
    """rotate_quantize of checked, non-empty arguments without a tile_obstacle, written to codes, scale and zero."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    factors = [x if factor is None else factor.to(x.dtype).contiguous() for factor in (r1, r2)]
    block_1, block_2 = block_sizes(*sizes, rotates=r1 is not None or r2 is not None)
    start(
        rotate_quantize_kernel,
        x,
        rows.shape[0],
        *(rows, *factors, _clips_on(x.device, clips), codes, scale, scale if zero is None else zero),
        T=rows.shape[0],
        stride_x=rows.stride(0),
        T_BUCKET=token_bucket(rows.shape[0]),
        N1=sizes[0],
        N2=sizes[1],
        BLOCK_N1=block_1,
        BLOCK_N2=block_2,
        SCHEME=scheme,
        CANDIDATES=len(clips),
        HAS_LEFT=r1 is not None,
        HAS_RIGHT=r2 is not None,
        COMPUTE=compute_dtype(x),
        enable_fp_fusion=scheme != "asymmetric",  # high * clip - low * clip rounds each product, as torch does
    )
