"""Rounding to integers by autograd alone: the reference of sq/learn/rounding.py, which writes its gradients out."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.elements import Integers
from sq.formats.format import Format
from sq.formats.grid import grid_from_range
from sq.formats.straight_through import straight_through


def fake_between(x: Tensor, low: Tensor, high: Tensor, format: Format) -> Tensor:
    """x rounded to the grid that spans [low, high], equal to `Grid.fake` on that grid; shape of x, float32.

    Rounding has the gradient of the identity and clamping its own (OmniQuant quantize/quantizer.py, LSQ). With a scale
    s that follows the range, a value y = q s inside it has dy/dx = 1 and dy/ds = q - x / s; one that is clamped has
    dy/dx = 0 and dy/ds = q. The zero point is rounded without a gradient.

    x is (..., n) float32; low and high are (..., 1) and broadcast against it. QuantizationError for a format of other
    elements than integers.
    """
    element = format.element
    if not isinstance(element, Integers):
        raise QuantizationError(f"ranges are learned for integers alone, not for {format.name}")
    grid = grid_from_range(low, high, format)
    first, last = element.code_range
    steps = x / grid.scale
    if element.scheme == "midrise":
        return (straight_through(steps, torch.floor).clamp(first, last) + 0.5) * grid.scale
    codes = straight_through(steps, torch.round)
    if grid.zero is None:
        return codes.clamp(first, last) * grid.scale
    return ((codes + grid.zero).clamp(first, last) - grid.zero) * grid.scale
