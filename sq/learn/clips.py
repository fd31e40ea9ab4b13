"""Learned clips: logits whose sigmoids shrink the range of a weight's rows or of every token (OmniQuant, FlatQuant)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.differentiable import fake_between
from sq.formats.grid import grid_from_range, row_range
from sq.formats.weight import WeightQuantizer
from sq.learn.rounding import round_on, row_extremes

INITIAL_LOGIT = 4.0  # sigmoid(4) = 0.982: OmniQuant quantize/quantizer.py, FlatQuant flatquant/quant_utils.py


class LearnedRange(nn.Module):
    """Range [sigmoid(l) min(w), sigmoid(u) max(w)] of each row of a weight; l and u are learned.

    Args:
        rows: d_out.
    """

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
        """x (..., n) rounded on the quantizer's bits, scheme and groups, with this clip in place of its own."""
        rows = x.reshape(-1, quantizer.group_size or x.shape[-1]).float()
        low, high = row_extremes(rows)
        low, high = self.low.sigmoid() * low, self.high.sigmoid() * high
        whole = quantizer.group_size is None
        grid = grid_from_range(low, high, quantizer.bits, quantizer.scheme, include_zero=whole)
        return round_on(rows, grid).view_as(x).to(x)

    def factors(self) -> tuple[float, float]:
        """What `LayerPlan.activation_clips` holds."""
        return float(self.low.detach().sigmoid()), float(self.high.detach().sigmoid())


def fake_weight(w: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """w (d_out, d_in) rounded on the quantizer's grid without a clip search, differentiable in w and its range.

    What `WeightQuantizer(clip=1.0)` gives, with the gradient of `fake_between`: clamp w to a `LearnedRange` first, and
    the gradient reaches the logits. At 16 bits w itself.
    """
    if quantizer.bits == 16:
        return w
    rows = w.reshape(-1, quantizer.group_size or w.shape[1]).float()
    low, high = row_range(rows)
    whole = quantizer.group_size is None
    return fake_between(rows, low, high, quantizer.bits, quantizer.scheme, include_zero=whole).view_as(w).to(w)
