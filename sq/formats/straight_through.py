"""Rounding with the gradient of the identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(x: Tensor, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """quantize(x), whose gradient passes to x unchanged (clipped entries too, as in SpinQuant train_utils).

    Without this a quantizer, whose derivative is zero almost everywhere, would silently stop all learning before it.
    """
    with torch.no_grad():
        rounded = quantize(x)
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _StraightThrough.apply(x, rounded)  # type: ignore[no-untyped-call]
        return result
    return rounded
