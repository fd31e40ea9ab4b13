"""Integer grids: where the 2^b levels of a row lie, and rounding to them. The one statement of it in this project.

For b bits, per row (a token, an output channel or a group of either), with clip in (0, 1]:

    scheme      codes q               level (value / s)   scale s                       zero z
    symmetric   -2^(b-1)..2^(b-1)-1   q                   clip max|x| / (2^(b-1) - 1)   none
    asymmetric  0..2^b-1              q - z               clip (high - low) / (2^b - 1) round(-clip low / s)
    midrise     -2^(b-1)..2^(b-1)-1   q + 1/2             2 clip max|x| / (2^b - 1)     none

[low, high] is widened to contain 0. Origins, ties, rows without spread, NaN: README.md, "Integer grids".
"""

from __future__ import annotations

import torch
from torch import Tensor

from .schemes import Scheme

FARTHEST_ZERO = 32000.0  # of a grid that need not contain 0: caches keep zero points in 16 bits
_ZERO_ROW_SCALE = {"symmetric": 1.0, "midrise": 2.0**-100}


def span(
    low: Tensor,
    high: Tensor,
    clip: float | Tensor,
    bits: int = 4,
    scheme: Scheme = "symmetric",
    *,
    include_zero: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point (None but for asymmetric) of rows whose entries span [low, high], of one shape.

    Args:
        clip: factor on the range, in (0, 1]; a tensor broadcasts against low.
        include_zero: widen an asymmetric range to contain 0, as peers do per token and per channel, not per group.
    """
    if scheme != "asymmetric":
        steps = 2 ** (bits - 1) - 1 if scheme == "symmetric" else (2**bits - 1) / 2
        scale = torch.maximum(-low, high) * clip / steps
        return torch.where(scale == 0, _ZERO_ROW_SCALE[scheme], scale), None
    levels = 2**bits - 1
    if include_zero:
        low, high = low.clamp_max(0), high.clamp_min(0)
    low, high = low * clip, high * clip
    if not include_zero:
        far = torch.maximum(low, -high) >= (high - low) / levels * FARTHEST_ZERO  # a constant row among them
        low, high = torch.where(far, low.clamp_max(0), low), torch.where(far, high.clamp_min(0), high)
    flat = (high - low) / levels == 0
    low, high = torch.where(flat, -1.0, low), torch.where(flat, 1.0, high)
    scale = (high - low) / levels
    return scale, torch.round(-low / scale)


def code_range(bits: int, scheme: Scheme) -> tuple[int, int]:
    """Smallest and largest integer code."""
    if scheme == "asymmetric":
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def codes_(v: Tensor, zero: Tensor | None, bits: int = 4, scheme: Scheme = "symmetric") -> Tensor:
    """Integer-valued codes of v = x / scale, in place."""
    low, high = code_range(bits, scheme)
    if scheme == "midrise":
        return v.floor_().clamp_(low, high)
    v.round_()
    if zero is not None:
        v.add_(zero)
    return v.clamp_(low, high)


def levels_(codes: Tensor, zero: Tensor | None, scheme: Scheme = "symmetric") -> Tensor:
    """Levels of integer-valued codes, values in units of the scale, in place."""
    if zero is not None:
        return codes.sub_(zero)
    return codes.add_(0.5) if scheme == "midrise" else codes
