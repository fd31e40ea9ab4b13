# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Residual, RMSNorm, SwiGLU and low-rank balance of one token in registers, before the rotation. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def added(b_x, p_residual, p_total, o_x, m_x, COMPUTE: tl.constexpr):
    """x + residual in float32, rounded to their dtype and written."""
    DTYPE: tl.constexpr = p_total.dtype.element_ty
    b_residual = tl.load(p_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_x = rounded(b_x.to(tl.float32) + b_residual, DTYPE, COMPUTE)
    tl.store(p_total + o_x, b_x.to(DTYPE), mask=m_x)
    return b_x


@triton.jit
def rms_norm(b_x, p_gain, o_x, m_x, eps, N: tl.constexpr, HAS_GAIN: tl.constexpr, COMPUTE: tl.constexpr):
    """x / sqrt(mean(x^2) + eps), then times the gain, rounded to the gain's dtype after each, as modules do."""
    DTYPE: tl.constexpr = p_gain.dtype.element_ty
    mean = tl.div_rn(tl.sum(b_x * b_x), tl.full([], N, tl.float32))
    b_x = rounded(b_x * tl.rsqrt(mean + eps), DTYPE, COMPUTE)
    if HAS_GAIN:
        b_gain = tl.load(p_gain + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_x = rounded(b_x * b_gain, DTYPE, COMPUTE)
    return b_x


@triton.jit
def swiglu(b_gate, p_up, o_x, m_x, COMPUTE: tl.constexpr):
    """silu(gate) up, silu(g) = g / (1 + exp(-g)), both factors of up's dtype and the product rounded to it."""
    DTYPE: tl.constexpr = p_up.dtype.element_ty
    b_up = tl.load(p_up + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_silu = rounded(b_gate / (1.0 + tl.exp(-b_gate)), DTYPE, COMPUTE)
    return rounded(b_silu * b_up, DTYPE, COMPUTE)


@triton.jit
def balanced(
    b_x, p_diagonal, p_basis, p_change, o_x, m_x,
    N: tl.constexpr, HAS_DIAGONAL: tl.constexpr, RANK: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """v + (v U) C with v = x D, from rows of U^T and C that every token reads anew; rounded once, to their dtype."""
    if HAS_DIAGONAL:
        b_x = b_x * tl.load(p_diagonal + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_y = b_x
    for i_r in range(RANK):
        b_basis = tl.load(p_basis + i_r * N + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_change = tl.load(p_change + i_r * N + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_y += tl.sum(b_x * b_basis) * b_change
    return rounded(b_y, p_basis.dtype.element_ty, COMPUTE)


@triton.jit
def rounded(b_v, DTYPE: tl.constexpr, COMPUTE: tl.constexpr):
    """float32 v rounded to the nearest value of DTYPE, ties to even."""
    if DTYPE.is_bf16() and COMPUTE.is_fp32():  # the interpreter, whose own conversion truncates
        b_bits = b_v.to(tl.int32, bitcast=True)
        b_bits = (b_bits + 0x7FFF + ((b_bits >> 16) & 1)) & -65536
        b_v = tl.where(b_v == b_v, b_bits.to(tl.float32, bitcast=True), b_v)
    else:
        b_v = b_v.to(DTYPE).to(tl.float32)
    return b_v
