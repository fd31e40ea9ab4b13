# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernel that turns new queries and keys by RoPE, and quantizes keys and values into the int4 cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import power_of_two_from
from ..rotate_quantize.triton import clips_on
from ..rotate_quantize.triton_front import rounded
from ..tuning import compute_dtype
from .cache import Kv4Cache
from .triton_append import load_halves, write_row


@triton.jit
def kv4_rope_append_kernel(
    p_q, p_k, p_v, p_cos, p_sin, p_positions, p_clips,
    p_y, p_k_codes, p_k_scale, p_k_zero, p_v_codes, p_v_scale, p_v_zero,
    N, S,
    stride_q_b, stride_q_h, stride_q_n, stride_k_b, stride_k_h, stride_k_n, stride_v_b, stride_v_h, stride_v_n,
    stride_angle_b, stride_angle_n,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr,
    SCHEME: tl.constexpr, CANDIDATES: tl.constexpr, INCLUDE_ZERO: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """One new token: of one KV head, whose key and value it writes, or of one query head, which it turns."""
    i_n = tl.program_id(0).to(tl.int64)
    i_h = tl.program_id(1)
    i_b = tl.program_id(2).to(tl.int64)
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < D // 2
    p_cos += i_b * stride_angle_b + i_n * stride_angle_n
    p_sin += i_b * stride_angle_b + i_n * stride_angle_n
    if i_h < KV_HEADS:
        i_s = tl.load(p_positions + i_b).to(tl.int64) + i_n
        i_row = (i_b * KV_HEADS + i_h) * S + i_s
        inside = (i_s >= 0) & (i_s < S)
        p_key = p_k + i_b * stride_k_b + i_h.to(tl.int64) * stride_k_h + i_n * stride_k_n
        p_value = p_v + i_b * stride_v_b + i_h.to(tl.int64) * stride_v_h + i_n * stride_v_n
        b_even = _turned(p_key, p_cos, p_sin, 2 * o_h, m_h, D, COMPUTE)
        b_odd = _turned(p_key, p_cos, p_sin, 2 * o_h + 1, m_h, D, COMPUTE)
        write_row(
            b_even, b_odd, p_clips, p_k_codes, p_k_scale, p_k_zero, i_row, inside, o_h, m_h,
            D, SCHEME, CANDIDATES, INCLUDE_ZERO,
        )  # fmt: skip
        b_even, b_odd = load_halves(p_value, o_h, m_h)
        write_row(
            b_even, b_odd, p_clips, p_v_codes, p_v_scale, p_v_zero, i_row, inside, o_h, m_h,
            D, SCHEME, CANDIDATES, INCLUDE_ZERO,
        )  # fmt: skip
    else:
        i_q = i_h - KV_HEADS
        p_query = p_q + i_b * stride_q_b + i_q.to(tl.int64) * stride_q_h + i_n * stride_q_n
        p_turned = p_y + ((i_b * HEADS + i_q) * N + i_n) * D
        for half in tl.static_range(2):
            o_d = o_h + half * (D // 2)
            b_y = _turned(p_query, p_cos, p_sin, o_d, m_h, D, COMPUTE)
            tl.store(p_turned + o_d, b_y.to(p_y.dtype.element_ty), mask=m_h)


@triton.jit
def _turned(p_x, p_cos, p_sin, o_d, m_d, D: tl.constexpr, COMPUTE: tl.constexpr):
    """Features o_d of a row behind RoPE, float32 values of its dtype."""
    DTYPE: tl.constexpr = p_x.dtype.element_ty
    first = o_d < D // 2
    b_x = tl.load(p_x + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_other = tl.load(p_x + tl.where(first, o_d + D // 2, o_d - D // 2), mask=m_d, other=0.0).to(tl.float32)
    b_cos = tl.load(p_cos + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_sin = tl.load(p_sin + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_x = rounded(b_x * b_cos, DTYPE, COMPUTE)
    b_other = rounded(tl.where(first, -b_other, b_other) * b_sin, DTYPE, COMPUTE)
    return rounded(b_x + b_other, DTYPE, COMPUTE)


def launch(
    cache: Kv4Cache, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, positions: Tensor,
    clips: tuple[float, ...], out: Tensor,
) -> None:  # fmt: skip
    """kv4_rope_append of checked, non-empty arguments, with queries written to out."""
    (batch, kv_heads, tokens, head_dim), heads = k.shape, q.shape[1]
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    cos, sin = cos.contiguous(), sin.contiguous()

    def zero(part: Tensor | None) -> Tensor:
        return k if part is None else part

    # fmt: off
    with torch.cuda.device_of(k):  # Triton launches on the current device
        kv4_rope_append_kernel[(tokens, kv_heads + heads, batch)](
            q, k, v, cos, sin, positions, clips_on(k.device, clips), out,
            cache.keys.codes, cache.keys.scale, zero(cache.keys.zero),
            cache.values.codes, cache.values.scale, zero(cache.values.zero),
            tokens, cache.keys.scale.shape[2], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            cos.stride(0) if len(cos) > 1 else 0, cos.stride(1),
            HEADS=heads, KV_HEADS=kv_heads, D=head_dim, BLOCK_H=power_of_two_from(head_dim // 2),
            SCHEME=cache.scheme, CANDIDATES=len(clips), INCLUDE_ZERO=cache.include_zero, COMPUTE=compute_dtype(k),
            num_warps=1, enable_fp_fusion=False,  # float32 products are rounded before they are added, as torch does
        )
    # fmt: on
