# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Triton kernel of rotate_quantize. Imports Triton."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..coded import Coded
from ..tuning import autotune, compute_dtype, start, token_bucket
from .front import Front
from .tiles import block_sizes
from .triton_front import added, balanced, rms_norm, swiglu
from .triton_grid import quantized_token


@autotune
@triton.jit
def rotate_quantize_kernel(
    p_x, p_residual, p_up, p_gain, p_diagonal, p_basis, p_change, p_r1, p_r2, p_clips,
    p_total, p_codes, p_scale, p_zero,
    T, stride_x, stride_residual, stride_up, eps, end_low, end_high, T_BUCKET,
    N1: tl.constexpr, N2: tl.constexpr, BLOCK_N1: tl.constexpr, BLOCK_N2: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, HAS_GAIN: tl.constexpr, HAS_UP: tl.constexpr,
    HAS_BALANCE: tl.constexpr, HAS_DIAGONAL: tl.constexpr, RANK: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    SCHEME: tl.constexpr, CANDIDATES: tl.constexpr, HAS_ENDS: tl.constexpr, CONTAINER: tl.constexpr,
    COMPUTE: tl.constexpr, PROGRAMS_PER_SM: tl.constexpr,
):  # fmt: skip
    """Y = R1^T X R2, its grid and its codes, one token X [N1, N2] at a time; Y as two halves, even and odd columns."""
    BLOCK_H: tl.constexpr = BLOCK_N2 // 2
    o_1 = tl.arange(0, BLOCK_N1)
    o_2 = tl.arange(0, BLOCK_N2)
    o_h = tl.arange(0, BLOCK_H)
    m_1 = o_1 < N1
    m_2 = o_2 < N2
    m_x = m_1[:, None] & m_2[None, :]
    m_y = m_1[:, None] & (o_h[None, :] < N2 // 2)
    o_x = o_1[:, None] * N2 + o_2[None, :]
    if HAS_LEFT:
        p_left = p_r1 + o_1[:, None] + o_1[None, :] * N1  # transposed
        b_left = tl.load(p_left, mask=m_1[:, None] & m_1[None, :], other=0.0).to(COMPUTE)
    if HAS_RIGHT:
        p_right = p_r2 + o_2[:, None] * N2 + 2 * o_h[None, :]
        m_right = m_2[:, None] & (o_h[None, :] < N2 // 2)
        b_r2_even = tl.load(p_right, mask=m_right, other=0.0).to(COMPUTE)
        b_r2_odd = tl.load(p_right + 1, mask=m_right, other=0.0).to(COMPUTE)
    row_x = tl.full([], stride_x, tl.int64)
    row_residual = tl.full([], stride_residual, tl.int64)
    row_up = tl.full([], stride_up, tl.int64)
    row_total = tl.full([], N1 * N2, tl.int64)
    row_codes = tl.full([], N1 * N2 // 2 if CONTAINER == "int4" else N1 * N2, tl.int64)
    for i_t in range(tl.program_id(0), T, tl.num_programs(0)):
        b_x = tl.load(p_x + i_t * row_x + o_x, mask=m_x, other=0.0)
        if HAS_RESIDUAL:
            b_x = added(b_x, p_residual + i_t * row_residual, p_total + i_t * row_total, o_x, m_x, COMPUTE)
        if HAS_NORM:
            b_x = rms_norm(b_x.to(tl.float32), p_gain, o_x, m_x, eps, N1 * N2, HAS_GAIN, COMPUTE)
        if HAS_UP:
            b_x = swiglu(b_x.to(tl.float32), p_up + i_t * row_up, o_x, m_x, COMPUTE)
        if HAS_BALANCE:
            b_x = b_x.to(tl.float32)
            b_x = balanced(b_x, p_diagonal, p_basis, p_change, o_x, m_x, N1 * N2, HAS_DIAGONAL, RANK, COMPUTE)
        b_x = b_x.to(COMPUTE)
        if HAS_LEFT:
            b_x = tl.dot(b_left, b_x, input_precision="ieee")
        if HAS_RIGHT:
            b_x = b_x.to(COMPUTE)
            b_even = tl.dot(b_x, b_r2_even, input_precision="ieee")
            b_odd = tl.dot(b_x, b_r2_odd, input_precision="ieee")
        else:
            b_even, b_odd = tl.split(tl.reshape(b_x.to(tl.float32), [BLOCK_N1, BLOCK_H, 2]))
        b_even, b_odd, scale, zero = quantized_token(
            b_even, b_odd, m_y, p_clips, end_low, end_high, SCHEME, CANDIDATES, HAS_ENDS
        )
        p_token = p_codes + i_t * row_codes
        if CONTAINER == "int8":
            tl.store(p_token + o_x, tl.interleave(b_even, b_odd).to(tl.int8), mask=m_x)
        else:
            o_half = o_1[:, None] * (N2 // 2) + o_h[None, :]
            if CONTAINER == "int4":
                tl.store(p_token + o_half, ((b_even & 15) | ((b_odd & 15) << 4)).to(tl.uint8), mask=m_y)
            else:
                tl.store(p_token + o_half, b_even.to(tl.int8), mask=m_y)
                tl.store(p_token + N1 * N2 // 2 + o_half, b_odd.to(tl.int8), mask=m_y)
        tl.store(p_scale + i_t, scale)
        if SCHEME == "asymmetric":
            tl.store(p_zero + i_t, zero)


@lru_cache(maxsize=64)
def clips_on(device: torch.device, clips: tuple[float, ...]) -> Tensor:
    """Candidates on the device: copied there once, since no copy from the host can be captured in a CUDA graph."""
    return torch.tensor(clips, dtype=torch.float32, device=device)


def launch(
    x: Tensor, front: Front, r1: Tensor | None, r2: Tensor | None, sizes: tuple[int, int],
    scheme: str, clips: tuple[float, ...], ends: tuple[float, float], container: str, out: Coded,
) -> None:  # fmt: skip
    """rotate_quantize of checked, non-empty arguments without a tile_obstacle, written to out."""
    rows = _rows(x)
    up = rows if front.up is None else _rows(front.up)
    norm, balance, residual = front.norm, front.balance, front.residual
    what, total = (rows, rows) if residual is None else (_rows(residual.what), residual.total)

    def operand(tensor: Tensor | None) -> Tensor:
        """In x's dtype, contiguous; x stands for what is not there."""
        return x if tensor is None else tensor.to(x.dtype).contiguous()

    operands = (None if norm is None else norm.gain, *(balance or (None, None, None)), r1, r2)
    block_1, block_2 = block_sizes(*sizes, rotates=r1 is not None or r2 is not None)
    # fmt: off
    start(
        rotate_quantize_kernel, x, rows.shape[0],
        rows, what, up, *map(operand, operands), clips_on(x.device, clips),
        total, out.codes, out.scale, out.scale if out.zero is None else out.zero,
        T=rows.shape[0], stride_x=rows.stride(0), stride_residual=what.stride(0), stride_up=up.stride(0),
        eps=0.0 if norm is None else norm.eps,
        end_low=ends[0], end_high=ends[1], T_BUCKET=token_bucket(rows.shape[0]),
        N1=sizes[0], N2=sizes[1], BLOCK_N1=block_1, BLOCK_N2=block_2,
        HAS_RESIDUAL=residual is not None, HAS_NORM=norm is not None,
        HAS_GAIN=norm is not None and norm.gain is not None, HAS_UP=front.up is not None,
        HAS_BALANCE=balance is not None, HAS_DIAGONAL=balance is not None and balance.diagonal is not None,
        RANK=0 if balance is None else balance.basis.shape[0], HAS_LEFT=r1 is not None, HAS_RIGHT=r2 is not None,
        SCHEME=scheme, CANDIDATES=len(clips), HAS_ENDS=ends != (1.0, 1.0), CONTAINER=container,
        COMPUTE=compute_dtype(x),
        enable_fp_fusion=scheme != "asymmetric",  # high * clip - low * clip rounds each product, as torch does
    )
    # fmt: on


def _rows(x: Tensor) -> Tensor:
    """x as (T, n) with contiguous rows."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
