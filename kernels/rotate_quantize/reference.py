"""Rotation, per-token grid and packing in torch; formulas in README.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..coded import Coded
from ..grid import codes_, levels_, span
from ..nibbles import pack_nibbles
from ..schemes import Scheme
from .front import Front, front_reference

Container = Literal["int4", "int8", "int8_planes"]

_NO_FRONT = Front()


def rotate_quantize_reference(
    x: Tensor, r1: Tensor | None, r2: Tensor | None, scheme: Scheme, clips: Sequence[float], *,
    front: Front = _NO_FRONT, ends: tuple[float, float] = (1.0, 1.0),
    container: Container = "int4", dtype: torch.dtype = torch.float32,
) -> Coded:  # fmt: skip
    """`rotate_quantize` with at least one clip: factors and what the front yields in x's dtype, the rest in `dtype`."""
    y = rotate(front_reference(x, front, dtype).to(x.dtype), r1, r2, dtype)
    codes, scale, zero, _ = quantize(y, scheme, clips, ends)
    return Coded(contain(codes, container), scale.float(), None if zero is None else zero.float())


def quantize(
    y: Tensor,
    scheme: Scheme,
    clips: Sequence[float],
    ends: tuple[float, float] = (1.0, 1.0),
    *,
    include_zero: bool = True,
) -> Coded:
    """Integer-valued codes (..., n), scale (..., 1), zero (..., 1) or None, of y's dtype; include_zero as in `span`."""
    low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)  # NaN where the row holds one
    finite = torch.isfinite(low) & torch.isfinite(high)
    low, high = low * ends[0], high * ends[1]

    def grid(clip: float | Tensor) -> tuple[Tensor, Tensor | None]:
        return span(low, high, clip, 4, scheme, include_zero=include_zero)

    finite &= torch.isfinite(grid(1.0)[0])
    if y.is_cuda or not bool(finite.all()):  # reading it would wait for a GPU
        y, low, high = (torch.where(finite, value, 0) for value in (y, low, high))

    clip = torch.full_like(low, clips[0])
    if len(clips) > 1:
        least = torch.full_like(low, torch.inf)
        unit, _ = grid(1.0)
        for candidate in clips:
            scale, zero = grid(candidate)
            error = y / scale
            error.sub_(levels_(codes_(error.clone(), zero, 4, scheme), zero, scheme)).square_()
            cost = error.sum(-1, keepdim=True) * (scale / unit) ** 2
            better = cost < least
            clip, least = torch.where(better, candidate, clip), torch.where(better, cost, least)
    scale, zero = grid(clip)
    return Coded(codes_(y / scale, zero, 4, scheme), torch.where(finite, scale, torch.nan), zero)


def rotate(x: Tensor, r1: Tensor | None, r2: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """R1^T X R2 for every token x viewed as X (n1, n2), in `dtype` (..., n); None is an identity."""
    n1 = r1.shape[0] if r1 is not None else x.shape[-1] // (r2.shape[0] if r2 is not None else x.shape[-1])
    y = x.to(dtype).reshape(-1, n1, x.shape[-1] // n1)
    if r1 is not None:
        y = r1.to(x.dtype).to(dtype).T @ y
    if r2 is not None:
        y = y @ r2.to(x.dtype).to(dtype)
    return y.reshape(x.shape)


def contain(codes: Tensor, container: Container) -> Tensor:
    """Integer-valued codes (..., n) as uint8 (..., ceil(n / 2)), int8 (..., n) or int8 (..., 2, n / 2)."""
    if container == "int4":
        return pack_nibbles(codes)
    codes = codes.to(torch.int8)
    return codes if container == "int8" else codes.unflatten(-1, (-1, 2)).transpose(-1, -2)
