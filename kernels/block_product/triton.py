# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernel of block_product; the only module of this folder that imports Triton."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import interpreted, sm_count
from ..tuned.autotune import stored_autotune
from ..tuning import compute_dtype, token_bucket
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
    p_x, p_blocks, p_first, p_u, p_v, p_z,
    T, stride_x, stride_u, stride_ur, stride_v, stride_vr, T_BUCKET,
    N1: tl.constexpr, N2: tl.constexpr, BLOCK_N1: tl.constexpr, BLOCK_K: tl.constexpr,
    RANK: tl.constexpr, BLOCK_R: tl.constexpr, HAS_FIRST: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """A tile [BLOCK_T tokens, BLOCK_L columns] of every row of Z; without R1 the rows are shared out among programs."""
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
    if RANK > 0:  # x U takes the whole token, whatever the columns
        o_r = tl.arange(0, BLOCK_R)
        m_r = o_r < RANK
        b_c = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
        for i_1 in range(N1):
            for i_k in tl.static_range(PIECES):
                o_2 = i_k * BLOCK_K + o_k
                m_2 = o_2 < N2
                o_n = i_1 * N2 + o_2
                b_x = tl.load(p_rows + o_n[None, :], mask=m_t[:, None] & m_2[None, :], other=0.0).to(COMPUTE)
                p_b_u = p_u + o_n[:, None] * stride_u + o_r[None, :] * stride_ur
                b_u = tl.load(p_b_u, mask=m_2[:, None] & m_r[None, :], other=0.0).to(COMPUTE)
                b_c = tl.dot(b_x, b_u, b_c, input_precision="ieee")
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


def launch(x: Tensor, blocks: Tensor, first: Tensor | None, low_rank: LowRank | None, out: Tensor) -> None:
    """block_product of checked, non-empty arguments in x's dtype without a tile_obstacle, written to out."""
    n1, n2 = blocks.shape[:2]
    rows = x.reshape(-1, n1 * n2)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    tokens, sms = len(rows), sm_count(x.device)
    rank = 0 if low_rank is None else low_rank[0].shape[1]
    u, v = (rows, rows) if low_rank is None else low_rank

    def grid(config: dict[str, int]) -> tuple[int]:
        cut = triton.cdiv(tokens, config["BLOCK_T"]) * triton.cdiv(n2, config["BLOCK_L"])
        return (cut * (1 if first is not None else min(n1, max(1, 2 * sms // cut))),)

    with torch.cuda.device_of(x):  # Triton launches on the current device
        block_product_kernel[grid](
            rows, blocks.contiguous(), rows if first is None else first.contiguous(), u, v, out,
            T=tokens, stride_x=rows.stride(0), stride_u=u.stride(0), stride_ur=u.stride(1),
            stride_v=v.stride(0), stride_vr=v.stride(1), T_BUCKET=token_bucket(tokens),
            N1=n1, N2=n2, BLOCK_N1=tiles.block_n1(n1, first is not None), BLOCK_K=tiles.piece(n2),
            RANK=rank, BLOCK_R=tiles.block_r(rank), HAS_FIRST=first is not None, COMPUTE=compute_dtype(x),
        )  # fmt: skip
