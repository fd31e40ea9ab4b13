"""Which formats and transforms `rotate_quantize` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from ..formats import Format, grid_obstacle
from ..steps import KroneckerStep, LowRankStep, Step

Form: TypeAlias = tuple[Tensor | None, Tensor | None, LowRankStep | None]


def obstacle(format: Format) -> str | None:
    """Why activations cannot be quantized to this format, or None: 4-bit integers of any scheme, a scale a token.

    Any clip goes with them: a factor, one for each end of the range, or candidates for each token to choose from.
    """
    if (found := grid_obstacle(format)) is not None:
        return found
    if format.bits != 4:
        return f"{format.name} has codes of {format.bits} bits, and rotate_quantize makes codes of 4"
    if format.group is not None:
        return f"{format.name} has a scale for every {format.group} features, and rotate_quantize makes one a token"
    return None


def form_of(steps: Sequence[Step] | None) -> Form | None:
    """(r1, r2, balance) of a transform's steps, each None for an identity; None for another form or no steps known."""
    if steps is None:
        return None
    balance = steps[0] if steps and isinstance(steps[0], LowRankStep) else None
    rest = steps if balance is None else steps[1:]
    if not rest:
        return None, None, balance
    if len(rest) == 1 and isinstance(rest[0], KroneckerStep):
        return *rest[0], balance
    return None
