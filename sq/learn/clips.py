"""Learned clips: logits whose sigmoids shrink the range of a weight's rows or of every token (OmniQuant, FlatQuant)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.format import Format
from sq.formats.weight import WeightQuantizer
from sq.learn.rounding import round_rows, row_extremes

INITIAL_LOGIT = 4.0  # sigmoid(4) = 0.982: OmniQuant quantize/quantizer.py, FlatQuant flatquant/quant_utils.py


def integers_only(*formats: Format | None) -> str | None:
    """Why a method that learns ranges does not take these formats (None: 16 bits), or None if it does."""
    others = [format.name for format in formats if format is not None and format.scheme is None]
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
