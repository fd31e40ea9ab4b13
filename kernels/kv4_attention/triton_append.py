# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernel that quantizes new keys and values into the int4 cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import power_of_two_from
from ..rotate_quantize.triton import clips_on
from ..rotate_quantize.triton_grid import quantized_token
from .cache import Kv4Cache


@triton.jit
def kv4_append_kernel(
    p_k, p_v, p_positions, p_clips,
    p_k_codes, p_k_scale, p_k_zero, p_v_codes, p_v_scale, p_v_zero,
    N, S,
    stride_k_b, stride_k_h, stride_k_n, stride_v_b, stride_v_h, stride_v_n,
    KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr,
    SCHEME: tl.constexpr, CANDIDATES: tl.constexpr, INCLUDE_ZERO: tl.constexpr,
):  # fmt: skip
    """One new token of one KV head: its key, then its value. A position outside the cache is not written."""
    i_n = tl.program_id(0) % N
    i_bh = (tl.program_id(0) // N).to(tl.int64)
    i_b = i_bh // KV_HEADS
    i_h = i_bh % KV_HEADS
    i_s = tl.load(p_positions + i_b).to(tl.int64) + i_n
    i_row = i_bh * S + i_s
    inside = (i_s >= 0) & (i_s < S)
    p_key = p_k + i_b * stride_k_b + i_h * stride_k_h + i_n.to(tl.int64) * stride_k_n
    p_value = p_v + i_b * stride_v_b + i_h * stride_v_h + i_n.to(tl.int64) * stride_v_n
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < D // 2
    b_even, b_odd = load_halves(p_key, o_h, m_h)
    write_row(
        b_even, b_odd, p_clips, p_k_codes, p_k_scale, p_k_zero, i_row, inside, o_h, m_h,
        D, SCHEME, CANDIDATES, INCLUDE_ZERO,
    )  # fmt: skip
    b_even, b_odd = load_halves(p_value, o_h, m_h)
    write_row(
        b_even, b_odd, p_clips, p_v_codes, p_v_scale, p_v_zero, i_row, inside, o_h, m_h,
        D, SCHEME, CANDIDATES, INCLUDE_ZERO,
    )  # fmt: skip


@triton.jit
def load_halves(p_x, o_h, m_h):
    """Even and odd features of a row, in float32."""
    b_even = tl.load(p_x + 2 * o_h, mask=m_h, other=0.0).to(tl.float32)
    b_odd = tl.load(p_x + 2 * o_h + 1, mask=m_h, other=0.0).to(tl.float32)
    return b_even, b_odd


@triton.jit
def write_row(
    b_even, b_odd, p_clips, p_codes, p_scale, p_zero, i_row, inside, o_h, m_h,
    D: tl.constexpr, SCHEME: tl.constexpr, CANDIDATES: tl.constexpr, INCLUDE_ZERO: tl.constexpr,
):  # fmt: skip
    """Quantize a key or a value, given as its even and odd features, into row i_row of the cache."""
    b_even, b_odd, scale, zero = quantized_token(
        b_even, b_odd, m_h, p_clips, 1.0, 1.0, SCHEME, CANDIDATES, False, INCLUDE_ZERO
    )
    if SCHEME != "asymmetric":  # stored codes are unsigned
        b_even += 8
        b_odd += 8
    m_written = o_h < tl.where(inside, D // 2, 0)  # the interpreter cannot broadcast a scalar mask
    tl.store(p_codes + i_row * (D // 2) + o_h, (b_even | (b_odd << 4)).to(tl.uint8), mask=m_written)
    tl.store(p_scale + i_row, scale, mask=inside)
    if SCHEME == "asymmetric":
        tl.store(p_zero + i_row, zero.to(tl.int32).to(p_zero.dtype.element_ty), mask=inside)


def launch(cache: Kv4Cache, k: Tensor, v: Tensor, positions: Tensor, clips: tuple[float, ...]) -> None:
    """kv4_append of checked, non-empty arguments."""
    batch, kv_heads, tokens, head_dim = k.shape
    k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (k, v))

    def zero(part: Tensor | None) -> Tensor:
        return k if part is None else part

    # fmt: off
    with torch.cuda.device_of(k):  # Triton launches on the current device
        kv4_append_kernel[(batch * kv_heads * tokens,)](
            k, v, positions, clips_on(k.device, clips),
            cache.keys.codes, cache.keys.scale, zero(cache.keys.zero),
            cache.values.codes, cache.values.scale, zero(cache.values.zero),
            tokens, cache.keys.scale.shape[2], *k.stride()[:3], *v.stride()[:3],
            KV_HEADS=kv_heads, D=head_dim, BLOCK_H=power_of_two_from(head_dim // 2),
            SCHEME=cache.scheme, CANDIDATES=len(clips), INCLUDE_ZERO=cache.include_zero,
            num_warps=1, enable_fp_fusion=cache.scheme != "asymmetric",  # as in rotate_quantize/triton.py
        )
    # fmt: on
