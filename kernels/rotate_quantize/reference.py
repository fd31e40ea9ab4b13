"""Rotation, per-token grid and packing in torch; formulas in README.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .front import Front, front_reference

Scheme = Literal["symmetric", "asymmetric", "midrise"]

Container = Literal["int4", "int8", "int8_planes"]

_NO_FRONT = Front()
FARTHEST_ZERO = 32000.0  # of a grid that need not hold 0: zeros are kept in 16 bits
_ZERO_ROW_SCALE = {"symmetric": 1.0, "midrise": 2.0**-100}  # mid-rise has no level 0: an all-zero token gets tiny ones


def rotate_quantize_reference(
    x: Tensor,
    r1: Tensor | None,
    r2: Tensor | None,
    scheme: Scheme,
    clips: Sequence[float],
    *,
    front: Front = _NO_FRONT,
    ends: tuple[float, float] = (1.0, 1.0),
    container: Container = "int4",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes in their container, scale (..., 1) float32, zero (..., 1) float32 or None.

    Args:
        x: (..., n). The factors and what the front yields are rounded to x's dtype, the rest is computed in `dtype`.
        clips: candidates; the first of least squared error is taken, per token.
        ends: factors on the low and the high end of each token's range.
    """
    y = rotate(front_reference(x, front, dtype).to(x.dtype), r1, r2, dtype)
    codes, scale, zero = quantize(y, scheme, clips, ends)
    return contain(codes, container), scale.float(), zero.float() if scheme == "asymmetric" else None


def quantize(
    y: Tensor,
    scheme: Scheme,
    clips: Sequence[float],
    ends: tuple[float, float] = (1.0, 1.0),
    *,
    include_zero: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Integer-valued codes (..., n), scale (..., 1) and zero (..., 1), 0 where the scheme has none, in y's dtype.

    include_zero: an asymmetric range is widened to hold 0. Without, zero lies anywhere within FARTHEST_ZERO, and a
    token that would need one farther off is widened after all: its entries agree to 1 in 2000.
    """
    low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)  # NaN where the row holds one
    finite = torch.isfinite(low) & torch.isfinite(high)
    low, high = low * ends[0], high * ends[1]
    finite &= torch.isfinite(_grid(low, high, 1.0, scheme, include_zero)[0])
    if y.is_cuda or not bool(finite.all()):  # asking a GPU would wait for it
        y, low, high = (torch.where(finite, value, 0) for value in (y, low, high))

    clip = torch.full_like(low, clips[0])
    if len(clips) > 1:
        least = torch.full_like(low, torch.inf)
        unit, _ = _grid(low, high, 1.0, scheme, include_zero)
        for candidate in clips:
            scale, zero = _grid(low, high, candidate, scheme, include_zero)
            error = y / scale
            error.sub_(_level(_encode(error.clone(), zero, scheme), zero, scheme)).square_()
            cost = error.sum(-1, keepdim=True) * (scale / unit) ** 2
            better = cost < least
            clip, least = torch.where(better, candidate, clip), torch.where(better, cost, least)
    scale, zero = _grid(low, high, clip, scheme, include_zero)
    return _encode(y / scale, zero, scheme), torch.where(finite, scale, torch.nan), zero


def rotate(x: Tensor, r1: Tensor | None, r2: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """R1^T X R2 for every token x viewed as X (n1, n2), in `dtype` (..., n); None is an identity."""
    n1 = r1.shape[0] if r1 is not None else x.shape[-1] // (r2.shape[0] if r2 is not None else x.shape[-1])
    y = x.to(dtype).reshape(-1, n1, x.shape[-1] // n1)
    if r1 is not None:
        y = r1.to(x.dtype).to(dtype).T @ y
    if r2 is not None:
        y = y @ r2.to(x.dtype).to(dtype)
    return y.reshape(x.shape)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Integer-valued codes (..., n) as uint8 (..., ceil(n / 2)): code 2j in the low nibble of byte j, 2j + 1 above."""
    data = codes.to(torch.int8).view(torch.uint8)  # two's complement where negative
    if data.shape[-1] % 2:
        data = torch.nn.functional.pad(data, (0, 1))
    pairs = data.contiguous().view(torch.int16)  # little-endian: the even code lies in the low byte
    return ((pairs & 15) | ((pairs >> 4) & 0xF0)).to(torch.uint8)


def contain(codes: Tensor, container: Container) -> Tensor:
    """Integer-valued codes (..., n) as uint8 (..., ceil(n / 2)), int8 (..., n) or int8 (..., 2, n / 2)."""
    if container == "int4":
        return pack_nibbles(codes)
    codes = codes.to(torch.int8)
    return codes if container == "int8" else codes.unflatten(-1, (-1, 2)).transpose(-1, -2)


def _grid(low: Tensor, high: Tensor, clip: float | Tensor, scheme: Scheme, include_zero: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero of tokens that span [low, high]."""
    if scheme != "asymmetric":
        scale = torch.maximum(-low, high) * clip / (7.0 if scheme == "symmetric" else 7.5)
        return torch.where(scale == 0, _ZERO_ROW_SCALE[scheme], scale), torch.zeros_like(scale)
    if include_zero:
        low, high = low.clamp_max(0), high.clamp_min(0)
    low, high = low * clip, high * clip
    if not include_zero:
        far = torch.maximum(low, -high) >= (high - low) / 15 * FARTHEST_ZERO
        low, high = torch.where(far, low.clamp_max(0), low), torch.where(far, high.clamp_min(0), high)
    flat = (high - low) / 15 == 0
    low, high = torch.where(flat, -1.0, low), torch.where(flat, 1.0, high)
    scale = (high - low) / 15
    return scale, torch.round(-low / scale)


def _encode(v: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """Codes of v = y / scale, in place."""
    if scheme == "midrise":
        return v.floor_().clamp_(-8, 7)
    v.round_()
    return v.add_(zero).clamp_(0, 15) if scheme == "asymmetric" else v.clamp_(-8, 7)


def _level(codes: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """Values of codes in units of the scale, in place."""
    if scheme == "symmetric":
        return codes
    return codes.add_(0.5) if scheme == "midrise" else codes.sub_(zero)
