"""Rotation, per-token grid and packing in torch; formulas in README.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Scheme = Literal["symmetric", "asymmetric", "midrise"]

_ZERO_ROW_SCALE = {"symmetric": 1.0, "midrise": 2.0**-100}  # mid-rise has no level 0: an all-zero token gets tiny ones


def rotate_quantize_reference(
    x: Tensor,
    r1: Tensor | None,
    r2: Tensor | None,
    scheme: Scheme,
    clips: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Packed codes (..., ceil(n / 2)) uint8, scale (..., 1) float32, zero (..., 1) float32 or None.

    Args:
        x: (..., n). The factors are rounded to x's dtype, everything after that is computed in `dtype`.
        clips: candidates; the first of least squared error is taken, per token.
    """
    y = rotate(x, r1, r2, dtype)
    finite = torch.isfinite(y).all(-1, keepdim=True)
    low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
    unit, _ = _grid(low, high, 1.0, scheme)
    finite &= torch.isfinite(unit)
    y, low, high = (torch.where(finite, value, 0) for value in (y, low, high))

    clip = torch.full_like(low, clips[0])
    if len(clips) > 1:
        least = torch.full_like(low, torch.inf)
        unit, _ = _grid(low, high, 1.0, scheme)
        for candidate in clips:
            scale, zero = _grid(low, high, candidate, scheme)
            error = (y / scale - _level(_encode(y, scale, zero, scheme), zero, scheme)).square_()
            cost = error.sum(-1, keepdim=True) * (scale / unit) ** 2
            better = cost < least
            clip, least = torch.where(better, candidate, clip), torch.where(better, cost, least)
    scale, zero = _grid(low, high, clip, scheme)
    codes = pack_nibbles(_encode(y, scale, zero, scheme))
    scale = torch.where(finite, scale, torch.nan).float()
    return codes, scale, zero.float() if scheme == "asymmetric" else None


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
    nibbles = codes.to(torch.int16) & 15  # two's complement where negative
    if nibbles.shape[-1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1))
    return (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).to(torch.uint8)


def _grid(low: Tensor, high: Tensor, clip: float | Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scale and zero of tokens that span [low, high]."""
    if scheme != "asymmetric":
        scale = torch.maximum(-low, high) * clip / (7.0 if scheme == "symmetric" else 7.5)
        return torch.where(scale == 0, _ZERO_ROW_SCALE[scheme], scale), torch.zeros_like(scale)
    low, high = low.clamp_max(0) * clip, high.clamp_min(0) * clip
    flat = (high - low) / 15 == 0
    low, high = torch.where(flat, -1.0, low), torch.where(flat, 1.0, high)
    scale = (high - low) / 15
    return scale, torch.round(-low / scale)


def _encode(y: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    if scheme == "midrise":
        return torch.floor(y / scale).clamp_(-8, 7)
    low, high = (0, 15) if scheme == "asymmetric" else (-8, 7)
    return torch.round(y / scale).add_(zero).clamp_(low, high)


def _level(codes: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """Values of codes in units of the scale."""
    return codes + 0.5 if scheme == "midrise" else codes - zero
