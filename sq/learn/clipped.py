"""Weights clamped to learned ranges and rounded, with a gradient written out in a few passes over the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sq.formats.grid import Grid, grid_from_range
from sq.formats.weight import WeightQuantizer
from sq.learn.clips import LearnedRange, fake_weight


def clipped_weight(w: Tensor, learned: LearnedRange, quantizer: WeightQuantizer) -> Tensor:
    """w (d_out, d_in) clamped to its learned range and rounded: `fake_weight(w.clamp(*learned(w)), quantizer)`."""
    low, high = learned(w)
    if quantizer.format.group is not None:
        return fake_weight(w.clamp(low, high), quantizer)
    low, high = low.float(), high.float()
    grid = grid_from_range(low, high, quantizer.format)
    rounded: Tensor = _ClampAndRound.apply(w.float(), low, high, grid.scale, grid)  # type: ignore[no-untyped-call]
    return rounded.to(w)


class _ClampAndRound(torch.autograd.Function):
    """y = round(c / s) s for c = clamp(w, low, high), with dy/dc = 1 and dy/ds = (y - c) / s.

    Masks are made in place on floats, see sq.learn.rounding.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, low: Tensor, high: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        clamped = w.clamp(low, high)
        y = grid.fake(clamped, clamped)
        ctx.save_for_backward(w, y, low, high, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        (g,), (w, y, low, high, scale) = grads, ctx.saved_tensors
        below, above = w.clone().lt_(low).mul_(g), w.clone().gt_(high).mul_(g)
        g_low, g_high = (part.sum(-1, keepdim=True) for part in (below, above))
        inside = g - below.add_(above)
        clamped = (inside * w).sum(-1, keepdim=True) + g_low * low + g_high * high  # sum of g c
        g_scale = ((g * y).sum(-1, keepdim=True) - clamped) / scale
        return inside, g_low, g_high, g_scale, None
