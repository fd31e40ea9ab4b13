"""Rounding that can be differentiated in what is rounded and in the range of its grid."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.formats.grid import Scheme, code_range, grid_from_range
from sq.formats.straight_through import straight_through


def fake_between(
    x: Tensor, low: Tensor, high: Tensor, bits: int, scheme: Scheme, *, include_zero: bool = True
) -> Tensor:
    """x rounded to the grid that spans [low, high], equal to `Grid.fake` on that grid; shape of x, float32.

    Rounding has the gradient of the identity and clamping its own (OmniQuant quantize/quantizer.py, LSQ). With a scale
    s that follows the range, a value y = q s inside it has dy/dx = 1 and dy/ds = q - x / s; one that is clamped has
    dy/dx = 0 and dy/ds = q. The zero point is rounded without a gradient.

    Args:
        x: (..., n) float32.
        low, high: (..., 1) float32, broadcast against x.
        include_zero: see `grid_from_range`.
    """
    grid = grid_from_range(low, high, bits, scheme, include_zero=include_zero)
    first, last = code_range(bits, scheme)
    steps = x / grid.scale
    if scheme == "midrise":
        return (straight_through(steps, torch.floor).clamp(first, last) + 0.5) * grid.scale
    codes = straight_through(steps, torch.round)
    if grid.zero is None:
        return codes.clamp(first, last) * grid.scale
    return ((codes + grid.zero).clamp(first, last) - grid.zero) * grid.scale
