"""Rounding with gradients, for training loops: in few passes over a weight where autograd makes dozens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.clip_search import best_clip
from sq.formats.format import Format
from sq.formats.grid import Grid, grid_from_range, row_range


class RangeGradient(nn.Module):
    """An `ActivationQuantizer` of integers that is differentiated in the range of every token too, by `round_rows`.

    Straight-through gradients alone never show that an outlier costs all other channels of its token their resolution.
    """

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n) rounded to its grids: shape and dtype of x."""
        format, clip = self.quantizer.format, self.quantizer.clip
        if not (torch.is_grad_enabled() and x.requires_grad):
            out: Tensor = self.quantizer(x)
            return out
        if isinstance(clip, tuple):
            return round_rows(x, format, clip)
        if isinstance(clip, str):
            with torch.no_grad():
                found = best_clip(_rows(x, format), self.quantizer.clips, format)
            return round_rows(x, format, clip=found)
        return round_rows(x, format, clip=clip)


def differentiable(quantizer: ActivationQuantizer | None) -> RangeGradient | None:
    """`RangeGradient` of a quantizer, None of None."""
    return None if quantizer is None else RangeGradient(quantizer)


def round_rows(
    x: Tensor, format: Format, factors: tuple[float | Tensor, float | Tensor] = (1.0, 1.0), clip: float | Tensor = 1.0
) -> Tensor:
    """x (..., n) rounded on a grid for each row (group), differentiable in x, in the range of each row and in factors.

    Args:
        format: of integers.
        factors: on the low and the high end of each range.
        clip: factor on the whole range; a tensor broadcasts against (rows, 1).
    """
    rows = _rows(x, format)
    low, high = row_extremes(rows)
    grid = grid_from_range(factors[0] * low, factors[1] * high, format, clip)
    return round_on(rows, grid).view_as(x).to(x)


def round_on(x: Tensor, grid: Grid, *, lowest: int | None = None) -> Tensor:
    """x (R, n) rounded to a grid, differentiable in x and in the grid's scale (R, 1); the zero point has no gradient.

    y = q s has dy/dx = 1 and dy/ds = q - x / s, and where q is the end of the codes that a larger or smaller one was
    clamped to, dy/dx = 0 and dy/ds = q.

    `lowest` is the smallest code, instead of the scheme's.
    """
    rounded: Tensor = _RoundOn.apply(x, grid.scale, grid, lowest)  # type: ignore[no-untyped-call]
    return rounded


def row_extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest entry of the rows of x (R, n), (R, 1) each; equal ones share the gradient."""
    low, high = _Extremes.apply(x)  # type: ignore[no-untyped-call]
    return low, high


def _rows(x: Tensor, format: Format) -> Tensor:
    return x.reshape(-1, format.group or x.shape[-1]).float()


# Comparisons below are made in place on floats, into 0 and 1: on a CPU twenty times faster than into booleans, and the
# gradients of amin and amax, which count a boolean mask, cost more than the layer's matrix products.


class _RoundOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: Grid, lowest: int | None) -> Tensor:
        codes = grid.encode(x)
        if lowest is not None:
            codes.clamp_min_(lowest)
        y = grid.decode_(codes)
        ctx.save_for_backward(x, y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (g,), (x, y, scale) = grads, ctx.saved_tensors
        # A code that was not clamped is within half a step of x / s, up to the last bits of float32.
        gx = (y - x).abs_().le_(scale * (0.5 + 1e-5)).mul_(g)
        gs = None
        if ctx.needs_input_grad[1]:
            gs = ((g * y).sum(-1, keepdim=True) - (gx * x).sum(-1, keepdim=True)) / scale
        return gx, gs, None, None


class _Extremes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = row_range(x)
        ctx.save_for_backward(x, low, high)
        return low, high

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, *extremes = ctx.saved_tensors
        shares = []
        for g, extreme in zip(grads, extremes, strict=True):
            at = x.clone().eq_(extreme)
            shares.append(at.mul_(g / at.sum(-1, keepdim=True)))
        total: Tensor = shares[0] + shares[1]
        return total
