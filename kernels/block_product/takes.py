"""Which transforms `block_product` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from ..steps import BlockStep, LowRankStep, Step
from .reference import LowRank

Form: TypeAlias = tuple[Tensor, Tensor | None, LowRank | None]


def form_of(steps: Sequence[Step] | None) -> Form | None:
    """(blocks, first, low_rank) of a transform's steps, the latter two None for an identity.

    That is one BlockStep, or a LowRankStep without diagonal in front of one (a diagonal is folded into what stands
    before). None for another form or no steps known.
    """
    if not steps or not isinstance(steps[-1], BlockStep):
        return None
    blocks, first = steps[-1]
    if len(steps) == 1:
        return blocks, first, None
    before = steps[0]
    if len(steps) == 2 and isinstance(before, LowRankStep) and before.diagonal is None:
        return blocks, first, (before.basis.T, before.change.T)
    return None
