# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernels of decode attention over the int4 cache: a part of the positions each, then their sum."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import LARGEST_ACCUMULATOR, SHARED_BYTES, interpreted, power_of_two_from
from ..rotate_quantize.triton_front import rounded
from ..tuned.autotune import stored_autotune
from ..tuning import compute_dtype
from .cache import CONSTANT_ZERO, Kv4Cache
from .partials import Kv4Partials
from .triton_nibbles import nibbles

_LOG2_E = 1.4426950408889634


def configs() -> list[triton.Config]:
    """Every launch worth a try; one in the interpreter, where Triton's autotuner has no driver to time with."""
    if interpreted():
        return [triton.Config({"BLOCK_S": 32}, num_warps=4, num_stages=1)]
    return [
        triton.Config({"BLOCK_S": block}, num_warps=warps, num_stages=stages)
        for block in (32, 64, 128, 256)
        for warps in (2, 4, 8)
        for stages in (2, 3, 4)
    ]


def prune(candidates: list[triton.Config], named_args: dict[str, Any], **meta: Any) -> list[triton.Config]:
    """The configs whose sums, scores and packed tiles fit an SM; never empty."""

    def fits(config: triton.Config) -> bool:
        threads, block = 32 * config.num_warps, config.kwargs["BLOCK_S"]
        return bool(
            meta["BLOCK_G"] * (meta["D"] + block) <= threads * LARGEST_ACCUMULATOR
            and block * meta["D"] <= threads * 2 * LARGEST_ACCUMULATOR  # a side's unpacked tile, two to a register
            and block * meta["D"] * (config.num_stages + 2) <= SHARED_BYTES
        )

    widest = max(candidates, key=lambda c: (c.num_warps, -c.kwargs["BLOCK_S"], -c.num_stages))
    return [config for config in candidates if fits(config)] or [widest]


@partial(
    stored_autotune,
    configs=configs(),
    key=["ROWS_BUCKET", "SPLITS", "D", "GROUP", "HAS_ZERO", "HAS_STARTS", "NIBBLES"],
    prune=prune,
)
@triton.jit
def kv4_attention_kernel(
    p_q, p_k, p_k_scale, p_k_zero, p_v, p_v_scale, p_v_zero, p_starts, p_lengths,
    p_o, p_lse,
    softmax_scale, S, ROWS_BUCKET,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr,
    ZERO: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_STARTS: tl.constexpr,
    NIBBLES: tl.constexpr, ASM: tl.constexpr, COMPUTE: tl.constexpr, COMPUTE_V: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Attention of the GROUP query heads of one KV head over one of SPLITS parts of a row's positions.

    Writes the part's normalized output and the log2 of its sum of exponentials; features as even and odd halves.
    """
    D_B: tl.constexpr = D // 2
    OFFSET_K: tl.constexpr = 128 if NIBBLES == "bf16" else 0
    OFFSET_V: tl.constexpr = 0 if NIBBLES == "fp32" else 128
    NIBBLES_V: tl.constexpr = "fp32" if NIBBLES == "fp32" else "bf16"
    i_bh = tl.program_id(0).to(tl.int64)
    i_s = tl.program_id(1)
    i_b = i_bh // KV_HEADS
    o_g = tl.arange(0, BLOCK_G)
    o_d = tl.arange(0, D_B)
    o_s = tl.arange(0, BLOCK_S)
    m_g = o_g < GROUP

    p_row = p_q + (i_bh * GROUP + o_g)[:, None] * D + 2 * o_d[None, :]
    b_q_even = tl.load(p_row, mask=m_g[:, None], other=0.0).to(COMPUTE)
    b_q_odd = tl.load(p_row + 1, mask=m_g[:, None], other=0.0).to(COMPUTE)
    b_q_sum = tl.sum(b_q_even.to(tl.float32), 1) + tl.sum(b_q_odd.to(tl.float32), 1)

    first = tl.zeros([], tl.int32)
    if HAS_STARTS:
        first = tl.maximum(tl.load(p_starts + i_b).to(tl.int32), 0)
    last = tl.minimum(tl.load(p_lengths + i_b).to(tl.int32), S)
    begin = first // BLOCK_S * BLOCK_S
    blocks = tl.cdiv(tl.maximum(last - begin, 0), BLOCK_S)
    step = tl.cdiv(blocks, SPLITS) * BLOCK_S
    begin += i_s * step
    end = tl.minimum(begin + step, last)

    b_max = tl.full([BLOCK_G], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_G], tl.float32)
    b_shift = tl.zeros([BLOCK_G], tl.float32)  # what the offset and the zeros of the values add to every feature
    b_even = tl.zeros([BLOCK_G, D_B], tl.float32)
    b_odd = tl.zeros([BLOCK_G, D_B], tl.float32)
    for i_first in range(begin, end, BLOCK_S):
        o_t = i_first + o_s
        m_s = (o_t >= first) & (o_t < end)
        r_t = i_bh * S + o_t
        b_packed = tl.load(p_k + r_t[:, None] * D_B + o_d[None, :], mask=m_s[:, None], other=0)
        b_low, b_high = nibbles(b_packed, NIBBLES, COMPUTE, ASM)
        b_scores = tl.dot(b_q_even, tl.trans(b_low), input_precision="ieee")
        b_scores = tl.dot(b_q_odd, tl.trans(b_high), b_scores, input_precision="ieee")
        b_zero = tl.full([BLOCK_S], OFFSET_K + ZERO, tl.float32)
        if HAS_ZERO:
            b_zero += tl.load(p_k_zero + r_t, mask=m_s, other=0).to(tl.float32)
        b_scale = tl.load(p_k_scale + r_t, mask=m_s, other=0.0) * softmax_scale
        b_scores = (b_scores - b_q_sum[:, None] * b_zero[None, :]) * b_scale[None, :]
        b_scores = tl.where(m_s[None, :], b_scores, float("-inf"))

        b_new = tl.maximum(b_max, tl.max(b_scores, 1))
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_keep = tl.exp2(b_max - b_base)
        b_max = b_new
        b_p = tl.exp2(b_scores - b_base[:, None])
        b_total = b_total * b_keep + tl.sum(b_p, 1)

        b_packed = tl.load(p_v + r_t[:, None] * D_B + o_d[None, :], mask=m_s[:, None], other=0)
        b_low, b_high = nibbles(b_packed, NIBBLES_V, COMPUTE_V, ASM)
        b_zero = tl.full([BLOCK_S], OFFSET_V + ZERO, tl.float32)
        if HAS_ZERO:
            b_zero += tl.load(p_v_zero + r_t, mask=m_s, other=0).to(tl.float32)
        b_p = b_p * tl.load(p_v_scale + r_t, mask=m_s, other=0.0)[None, :]
        if NIBBLES != "fp32":  # rounded before the shift is summed, or 136 times the rounding would be left over
            b_p = rounded(b_p, tl.bfloat16, COMPUTE_V)
        b_shift = b_shift * b_keep + tl.sum(b_p * b_zero[None, :], 1)
        b_even = tl.dot(b_p.to(COMPUTE_V), b_low, b_even * b_keep[:, None], input_precision="ieee")
        b_odd = tl.dot(b_p.to(COMPUTE_V), b_high, b_odd * b_keep[:, None], input_precision="ieee")

    b_sum = tl.where(b_total == 0.0, 1.0, b_total)  # a part without positions
    b_o = tl.interleave((b_even - b_shift[:, None]) / b_sum[:, None], (b_odd - b_shift[:, None]) / b_sum[:, None])
    r_o = (i_bh * GROUP + o_g) * SPLITS + i_s
    o_o = tl.arange(0, D)
    tl.store(p_o + r_o[:, None] * D + o_o[None, :], b_o.to(p_o.dtype.element_ty), mask=m_g[:, None])
    if SPLITS > 1:
        tl.store(p_lse + r_o, b_max + tl.log2(b_sum), mask=m_g)


@triton.jit
def kv4_combine_kernel(
    p_part, p_lse, p_o, SPLITS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The parts of one query head, weighted by their sums of exponentials."""
    i_h = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, BLOCK_SPLITS)
    o_d = tl.arange(0, BLOCK_D)
    m_s = o_s < SPLITS
    m_d = o_d < D
    b_lse = tl.load(p_lse + i_h * SPLITS + o_s, mask=m_s, other=float("-inf"))
    largest = tl.max(b_lse)
    b_w = tl.exp2(b_lse - tl.where(largest == float("-inf"), 0.0, largest))
    total = tl.sum(b_w)
    p_head = p_part + (i_h * SPLITS + o_s)[:, None] * D + o_d[None, :]
    b_part = tl.load(p_head, mask=m_s[:, None] & m_d[None, :], other=0.0)
    b_o = tl.sum(b_part * b_w[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(p_o + i_h * D + o_d, b_o.to(p_o.dtype.element_ty), mask=m_d)


def launch(
    q: Tensor, cache: Kv4Cache, lengths: Tensor, starts: Tensor | None,
    scale: float, partials: Kv4Partials | None, out: Tensor,
) -> None:  # fmt: skip
    """kv4_attention of checked, non-empty arguments, written to out; partials where there is more than one part."""
    (batch, heads, head_dim), (_, kv_heads, capacity) = q.shape, cache.keys.scale.shape
    splits = 1 if partials is None else partials.lse.shape[-1]
    group, q = heads // kv_heads, q.contiguous()
    target, lse = (out, out) if partials is None else partials

    def zero(part: Tensor | None) -> Tensor:
        return q if part is None else part

    nibble = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[q.dtype]
    half = not interpreted() and nibble != "fp32"
    # fmt: off
    with torch.cuda.device_of(q):  # Triton launches on the current device
        kv4_attention_kernel[(batch * kv_heads, splits)](
            q, cache.keys.codes, cache.keys.scale, zero(cache.keys.zero),
            cache.values.codes, cache.values.scale, zero(cache.values.zero),
            lengths if starts is None else starts, lengths, target, lse,
            softmax_scale=scale * _LOG2_E, S=capacity, ROWS_BUCKET=power_of_two_from(batch * kv_heads),
            KV_HEADS=kv_heads, GROUP=group, BLOCK_G=power_of_two_from(group, 16), D=head_dim, SPLITS=splits,
            ZERO=CONSTANT_ZERO[cache.scheme], HAS_ZERO=cache.scheme == "asymmetric", HAS_STARTS=starts is not None,
            NIBBLES=nibble, ASM=half, COMPUTE=compute_dtype(q), COMPUTE_V=tl.bfloat16 if half else tl.float32,
        )
        if partials is not None:
            kv4_combine_kernel[(batch * heads,)](
                target, lse, out, SPLITS=splits, BLOCK_SPLITS=power_of_two_from(splits),
                D=head_dim, BLOCK_D=power_of_two_from(head_dim),
            )
    # fmt: on
