"""Learned clips: logits whose sigmoids shrink the range of a weight's rows or of every token (OmniQuant, FlatQuant)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.format import Format
from sq.formats.grid import Grid, grid_from_range
from sq.formats.weight import WeightQuantizer
from sq.learn.rounding import round_rows, row_extremes

INITIAL_LOGIT = 4.0  # sigmoid(4) = 0.982: OmniQuant quantize/quantizer.py, FlatQuant flatquant/quant_utils.py


def integers_only(*formats: Format | None) -> str | None:
    """Why a method that learns ranges does not take these formats (None: 16 bits), or None if it does."""
    others = [format.name for format in formats if format is not None and format.grid is None]
    return f"it learns ranges of integers, which {' and '.join(dict.fromkeys(others))} has not" if others else None


class LearnedRange(nn.Module):
    """Range [sigmoid(l) min(w), sigmoid(u) max(w)] of each of the d_out `rows` of a weight; l and u are learned."""

    def __init__(self, rows: int, *, device: torch.device | None = None) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.full((rows, 1), INITIAL_LOGIT, device=device))
        self.high = nn.Parameter(torch.full((rows, 1), INITIAL_LOGIT, device=device))

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high) of w (d_out, d_in), each (d_out, 1); differentiable in the logits and in w."""
        low, high = row_extremes(w)
        return self.low.sigmoid() * low, self.high.sigmoid() * high


class LearnedClip(nn.Module):
    """Factors sigmoid(l), sigmoid(u) on the low and the high end of every token's range; l and u are learned."""

    def __init__(self, *, device: torch.device | None = None) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.tensor(INITIAL_LOGIT, device=device))
        self.high = nn.Parameter(torch.tensor(INITIAL_LOGIT, device=device))

    def forward(self, x: Tensor, quantizer: ActivationQuantizer) -> Tensor:
        """x (..., n) rounded to the quantizer's format, of integers, with this clip in place of its own."""
        return round_rows(x, quantizer.format, (self.low.sigmoid(), self.high.sigmoid()))

    def factors(self) -> tuple[float, float]:
        """What `LayerPlan.activation_clips` holds."""
        return float(self.low.detach().sigmoid()), float(self.high.detach().sigmoid())


def fake_weight(w: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """w (d_out, d_in) rounded on the quantizer's grid without a clip search, differentiable in w and its range.

    It gives the numbers of `WeightQuantizer(clip=1.0)`. Clamp w to a `LearnedRange` first, and the gradient reaches the
    logits.
    """
    return round_rows(w, quantizer.format)


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
