# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernels of block_product; the only module of this folder that imports Triton."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import LEAST_SIDE, interpreted, power_of_two_from, sm_count
from ..tuned.autotune import stored_autotune
from ..tuning import autotune, compute_dtype, start, token_bucket
from . import tiles
from .reference import LowRank
from .tiles import LAUNCHES, Launch, Shape


def _config(launch: Launch) -> triton.Config:
    values = {"BLOCK_T": launch.block_t, "BLOCK_L": launch.block_l}
    return triton.Config(values, num_warps=launch.warps, num_stages=launch.stages)


def configs() -> list[triton.Config]:
    """Every launch worth a try; one in the interpreter, where Triton's autotuner has no driver to time with."""
    return [_config(launch) for launch in ((Launch(16, 16, 4, 1),) if interpreted() else LAUNCHES)]


def prune(candidates: list[triton.Config], named_args: dict[str, Any], **meta: Any) -> list[triton.Config]:
    """The configs that `tiles.launches` names."""
    shape = Shape(
        meta["BLOCK_N1"], meta["N2"], meta["BLOCK_R"], named_args["p_x"].element_size(), meta["T_BUCKET"]
    )  # fmt: skip
    fitting = [_config(launch) for launch in tiles.launches(shape)]
    wanted = {(c.kwargs["BLOCK_T"], c.kwargs["BLOCK_L"], c.num_warps, c.num_stages) for c in fitting}
    return [
        c for c in candidates if (c.kwargs["BLOCK_T"], c.kwargs["BLOCK_L"], c.num_warps, c.num_stages) in wanted
    ]  # fmt: skip


@partial(
    stored_autotune,
    configs=configs(),
    key=["T_BUCKET", "N1", "N2", "BLOCK_N1", "BLOCK_K", "RANK", "BLOCK_R", "HAS_FIRST", "COMPUTE"],
    prune=prune,
)
@triton.jit
def block_product_kernel(
    p_x, p_blocks, p_first, p_c, p_v, p_z,
    T, parts_c, stride_x, stride_v, stride_vr, T_BUCKET,
    N1: tl.constexpr, N2: tl.constexpr, BLOCK_N1: tl.constexpr, BLOCK_K: tl.constexpr,
    RANK: tl.constexpr, BLOCK_R: tl.constexpr, HAS_FIRST: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """A tile [BLOCK_T tokens, BLOCK_L columns] of every row of Z; without R1 programs share out the rows.

    x' = x + c V^T in registers, with c = x U as the sum of p_c [T, parts_c, RANK] over its parts.
    """
    TILES_L: tl.constexpr = (N2 + BLOCK_L - 1) // BLOCK_L
    PIECES: tl.constexpr = (N2 + BLOCK_K - 1) // BLOCK_K
    i_p = tl.program_id(0)
    parts = tl.num_programs(0) // (TILES_L * tl.cdiv(T, BLOCK_T))
    i_l = i_p % TILES_L  # neighbours share their tokens, which the L2 cache then has
    i_s = i_p // TILES_L % parts
    i_t = i_p // (TILES_L * parts)
    step = tl.cdiv(N1, parts)
    begin = i_s * step
    end = tl.minimum(begin + step, N1)

    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o_l = i_l * BLOCK_L + tl.arange(0, BLOCK_L)
    o_k = tl.arange(0, BLOCK_K)
    m_t = o_t < T
    m_l = o_l < N2
    p_rows = p_x + o_t.to(tl.int64)[:, None] * stride_x
    p_out = p_z + o_t.to(tl.int64)[:, None] * (N1 * N2)
    if RANK > 0:
        o_r = tl.arange(0, BLOCK_R)
        m_r = o_r < RANK
        m_c = m_t[:, None] & m_r[None, :]
        b_c = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
        for i_c in range(parts_c):
            p_b_c = p_c + (o_t.to(tl.int64)[:, None] * parts_c + i_c) * RANK + o_r[None, :]
            b_c += tl.load(p_b_c, mask=m_c, other=0.0)
        b_c = b_c.to(COMPUTE)
    if HAS_FIRST:
        o_1 = tl.arange(0, BLOCK_N1)
        m_1 = o_1 < N1
        b_z = tl.zeros([BLOCK_T, BLOCK_N1, BLOCK_L], tl.float32)
    for i_1 in range(begin, end):
        b_y = tl.zeros([BLOCK_T, BLOCK_L], tl.float32)
        for i_k in tl.static_range(PIECES):
            o_2 = i_k * BLOCK_K + o_k
            m_2 = o_2 < N2
            o_n = i_1 * N2 + o_2
            b_x = tl.load(p_rows + o_n[None, :], mask=m_t[:, None] & m_2[None, :], other=0.0).to(COMPUTE)
            if RANK > 0:
                p_b_v = p_v + o_n[None, :] * stride_v + o_r[:, None] * stride_vr
                b_v = tl.load(p_b_v, mask=m_r[:, None] & m_2[None, :], other=0.0).to(COMPUTE)
                b_x = tl.dot(b_c, b_v, b_x.to(tl.float32), input_precision="ieee").to(COMPUTE)
            p_block = p_blocks + o_n[:, None] * N2 + o_l[None, :]
            b_block = tl.load(p_block, mask=m_2[:, None] & m_l[None, :], other=0.0).to(COMPUTE)
            b_y = tl.dot(b_x, b_block, b_y, input_precision="ieee")
        if HAS_FIRST:  # row i_1 of R1, spread over the rows of Z by multiply-adds in float32
            b_r = tl.load(p_first + i_1 * N1 + o_1, mask=m_1, other=0.0).to(tl.float32)
            b_z += b_r[None, :, None] * b_y[:, None, :]
        else:
            p_y = p_out + (i_1 * N2 + o_l)[None, :]
            tl.store(p_y, b_y.to(p_z.dtype.element_ty), mask=m_t[:, None] & m_l[None, :])
    if HAS_FIRST:
        p_y = p_out[:, :, None] + (o_1[None, :, None] * N2 + o_l[None, None, :])
        m_z = m_t[:, None, None] & m_1[None, :, None] & m_l[None, None, :]
        tl.store(p_y, b_z.to(p_z.dtype.element_ty), mask=m_z)


@triton.jit
def directions_kernel(
    p_x, p_u, p_c,
    T, parts_c, stride_x, stride_u, stride_ur,
    N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
    RANK: tl.constexpr, BLOCK_R: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """sum x_i U_i over a part of the rows of BLOCK_T tokens: C [T, parts_c, RANK], whose sum over the parts is x U."""
    i_c = tl.program_id(0) % parts_c
    step = tl.cdiv(N1, parts_c)
    o_t = tl.program_id(0) // parts_c * BLOCK_T + tl.arange(0, BLOCK_T)
    o_r = tl.arange(0, BLOCK_R)
    m_t = o_t < T
    m_r = o_r < RANK
    b_c = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    for i_1 in range(i_c * step, tl.minimum(i_c * step + step, N1)):
        for i_k in tl.static_range((N2 + BLOCK_K - 1) // BLOCK_K):
            o_2 = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
            m_2 = o_2 < N2
            o_n = i_1 * N2 + o_2
            p_b_x = p_x + o_t.to(tl.int64)[:, None] * stride_x + o_n[None, :]
            b_x = tl.load(p_b_x, mask=m_t[:, None] & m_2[None, :], other=0.0).to(COMPUTE)
            p_b_u = p_u + o_n[:, None] * stride_u + o_r[None, :] * stride_ur
            b_u = tl.load(p_b_u, mask=m_2[:, None] & m_r[None, :], other=0.0).to(COMPUTE)
            b_c = tl.dot(b_x, b_u, b_c, input_precision="ieee")
    p_b_c = p_c + (o_t.to(tl.int64)[:, None] * parts_c + i_c) * RANK + o_r[None, :]
    tl.store(p_b_c, b_c, mask=m_t[:, None] & m_r[None, :])


@autotune
@triton.jit
def mix_kernel(
    p_x, p_first, p_z,
    T, T_BUCKET,
    N1: tl.constexpr, N2: tl.constexpr, BLOCK_N1: tl.constexpr, BLOCK_N2: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, COMPUTE: tl.constexpr, PROGRAMS_PER_SM: tl.constexpr,
):  # fmt: skip
    """Z = R1^T X for contiguous tokens X [N1, N2], BLOCK_N2 columns at a time."""
    TILES: tl.constexpr = (N2 + BLOCK_N2 - 1) // BLOCK_N2
    o_1 = tl.arange(0, BLOCK_N1)
    m_1 = o_1 < N1
    p_left = p_first + o_1[:, None] + o_1[None, :] * N1  # transposed
    b_left = tl.load(p_left, mask=m_1[:, None] & m_1[None, :], other=0.0).to(COMPUTE)
    row = tl.full([], N1 * N2, tl.int64)
    for i_p in range(tl.program_id(0), T * TILES, tl.num_programs(0)):
        o_2 = i_p % TILES * BLOCK_N2 + tl.arange(0, BLOCK_N2)
        o_x = i_p // TILES * row + o_1[:, None] * N2 + o_2[None, :]
        m_x = m_1[:, None] & (o_2[None, :] < N2)
        b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(COMPUTE)
        b_z = tl.dot(b_left, b_x, input_precision="ieee")
        tl.store(p_z + o_x, b_z.to(p_z.dtype.element_ty), mask=m_x)


def launch(x: Tensor, blocks: Tensor, first: Tensor | None, low_rank: LowRank | None, out: Tensor) -> None:
    """block_product of checked, non-empty arguments in x's dtype without a tile_obstacle, written to out."""
    n1, n2 = blocks.shape[:2]
    rows = x.reshape(-1, n1 * n2)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    tokens, sms = len(rows), sm_count(x.device)
    rank = 0 if low_rank is None else low_rank[0].shape[1]
    # fmt: off
    sizes: dict[str, Any] = {
        "N1": n1, "N2": n2, "BLOCK_K": tiles.piece(n2), "RANK": rank, "BLOCK_R": tiles.block_r(rank),
        "COMPUTE": compute_dtype(x),
    }
    # fmt: on
    apart = first is not None and tiles.mixes_apart(n1, tokens)
    mixes = first is not None and not apart
    target = torch.empty_like(out) if apart else out  # tuning runs a launch many times: not in place

    def parts_of(cut: int) -> int:
        """Programs that share the rows of a tile, so that a few tiles fill the GPU too."""
        return min(n1, max(1, 2 * sms // cut))

    def grid(config: dict[str, int]) -> tuple[int]:
        cut = triton.cdiv(tokens, config["BLOCK_T"]) * triton.cdiv(n2, config["BLOCK_L"])
        return (cut * (1 if mixes else parts_of(cut)),)

    with torch.cuda.device_of(x):  # Triton launches on the current device
        c, v = rows, rows  # stand for what is not there
        parts = 0
        if low_rank is not None:
            u, v = low_rank
            block_t = 16 if tokens <= tiles.FEW_TOKENS else 32
            cut = triton.cdiv(tokens, block_t)
            parts = parts_of(cut)
            c = torch.empty(tokens, parts, rank, dtype=torch.float32, device=x.device)
            strides = (rows.stride(0), *u.stride())
            directions_kernel[(cut * parts,)](rows, u, c, tokens, parts, *strides, BLOCK_T=block_t, **sizes)
        block_product_kernel[grid](
            rows, blocks.contiguous(), rows if first is None else first.contiguous(), c, v, target,
            T=tokens, parts_c=parts, stride_x=rows.stride(0), stride_v=v.stride(0), stride_vr=v.stride(1),
            T_BUCKET=token_bucket(tokens), BLOCK_N1=tiles.block_n1(n1, mixes), HAS_FIRST=mixes, **sizes,
        )  # fmt: skip
    if first is not None and apart:
        mix(target, first, out, tiles.mixed_columns(n1, n2))


def mix(y: Tensor, first: Tensor, out: Tensor, columns: int) -> None:
    """R1^T Y of contiguous tokens, in tiles of so many columns (a power of two), written to out."""
    n1 = len(first)
    n2, tokens = y.shape[-1] // n1, y.numel() // y.shape[-1]
    start(
        mix_kernel, y, tokens * triton.cdiv(n2, columns), y, first.contiguous(), out,
        T=tokens, T_BUCKET=token_bucket(tokens), N1=n1, N2=n2,
        BLOCK_N1=power_of_two_from(n1, LEAST_SIDE), BLOCK_N2=columns,
        HAS_LEFT=True, HAS_RIGHT=False, COMPUTE=compute_dtype(y),
    )  # fmt: skip
