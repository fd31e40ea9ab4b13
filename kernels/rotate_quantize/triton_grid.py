# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""The 4-bit grid of one token in registers: range, clip search, codes. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def quantized_token(
    b_even, b_odd, m_y, p_clips, end_low, end_high,
    SCHEME: tl.constexpr, CANDIDATES: tl.constexpr, HAS_ENDS: tl.constexpr,
    INCLUDE_ZERO: tl.constexpr = True,
):  # fmt: skip
    """Integer codes (int32) of a token's even and odd entries, its scale and its zero (0.0 where the scheme has none).

    b_even, b_odd: float32, 0 outside the mask m_y. With an entry that is not finite: scale NaN, codes of zeros.
    """
    # padding is 0 and the range holds 0, so only NaN and inf can come from it, and those are the token's own
    bits = tl.maximum(_largest_bits(b_even), _largest_bits(b_odd))
    high = bits.to(tl.float32, bitcast=True)
    low = -high
    if SCHEME == "asymmetric" or HAS_ENDS:
        if INCLUDE_ZERO:
            low = tl.minimum(tl.minimum(tl.min(b_even), tl.min(b_odd)), 0.0)
            high = tl.maximum(tl.maximum(tl.max(b_even), tl.max(b_odd)), 0.0)
        else:
            infinity = float("inf")
            low = tl.min(tl.minimum(tl.where(m_y, b_even, infinity), tl.where(m_y, b_odd, infinity)))
            high = tl.max(tl.maximum(tl.where(m_y, b_even, -infinity), tl.where(m_y, b_odd, -infinity)))
    if HAS_ENDS:
        low = low * end_low
        high = high * end_high
    unit, zero = _grid(low, high, 1.0, SCHEME, INCLUDE_ZERO)
    finite = (bits < 0x7F800000) & (unit < float("inf"))
    low = tl.where(finite, low, 0.0)
    high = tl.where(finite, high, 0.0)
    b_even = tl.where(finite, b_even, 0.0)
    b_odd = tl.where(finite, b_odd, 0.0)

    clip = tl.load(p_clips)
    if CANDIDATES > 1:
        unit, zero = _grid(low, high, 1.0, SCHEME, INCLUDE_ZERO)
        least = tl.full([], float("inf"), tl.float32)
        for i_c in tl.static_range(CANDIDATES):  # unrolled: only an innermost loop's loads are prefetched
            candidate = tl.load(p_clips + i_c)
            scale, zero = _grid(low, high, candidate, SCHEME, INCLUDE_ZERO)
            inverse = tl.div_rn(1.0, scale)
            error = _squared_error(b_even, m_y, inverse, zero, SCHEME)
            error += _squared_error(b_odd, m_y, inverse, zero, SCHEME)
            relative = tl.div_rn(scale, unit)
            cost = error * relative * relative
            clip = tl.where(cost < least, candidate, clip)
            least = tl.minimum(cost, least)
    scale, zero = _grid(low, high, clip, SCHEME, INCLUDE_ZERO)
    b_even = (_nearest(tl.div_rn(b_even, scale), zero, SCHEME) + zero).to(tl.int32)
    b_odd = (_nearest(tl.div_rn(b_odd, scale), zero, SCHEME) + zero).to(tl.int32)
    return b_even, b_odd, tl.where(finite, scale, float("nan")), zero


@triton.jit
def _round(b_x):
    """Nearest integer, ties to even, of |x| < 2^22: adding 3 * 2^22 leaves no bit for a fraction."""
    return (b_x + 12582912.0) - 12582912.0


@triton.jit
def _grid(low, high, clip, SCHEME: tl.constexpr, INCLUDE_ZERO: tl.constexpr):
    """Scale and zero of a token that spans [low, high]; quotients are rounded as torch rounds them."""
    if SCHEME == "asymmetric":
        if INCLUDE_ZERO:
            low = tl.minimum(low, 0.0)
            high = tl.maximum(high, 0.0)
        low = low * clip
        high = high * clip
        if not INCLUDE_ZERO:
            far = tl.maximum(low, -high) >= tl.div_rn(high - low, 15.0) * 32000.0  # FARTHEST_ZERO
            low = tl.where(far, tl.minimum(low, 0.0), low)
            high = tl.where(far, tl.maximum(high, 0.0), high)
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
