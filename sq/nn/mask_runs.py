"""Attention masks as runs of positions: what decode attention over a cache needs to know of a mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Positions starts[b]..ends[b] - 1 of row b are seen; (B,) int64. Starts of None are 0."""

    starts: Tensor | None
    ends: Tensor


class MaskRuns:
    """Masks of one token as runs, found once for all layers that share a mask.

    Args:
        checked: look whether a mask is one run a row, which waits for a GPU. Without, the positions from the first to
            the last one seen are taken.
    """

    def __init__(self, *, checked: bool) -> None:
        self.checked = checked
        self._known: dict[int, tuple[Tensor, Run | None]] = {}  # by id; the mask is kept, so that no other takes its id

    def forget(self) -> None:
        """Before each step: masks are known no longer than they last."""
        self._known.clear()

    def of(self, mask: Tensor | None, position: Tensor) -> Run | None:
        """The runs of a mask (B or 1, 1, 1, S), or None where it has gaps, is additive, or differs between heads.
        Without a mask all positions are seen, whose number is `position` (B,)."""
        if mask is None:
            return Run(None, position)
        if id(mask) not in self._known:
            self._known[id(mask)] = (mask, self._found(mask, len(position)))
        return self._known[id(mask)][1]

    def _found(self, mask: Tensor, batch: int) -> Run | None:
        if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1:3] != (1, 1):
            return None
        seen = mask[:, 0, 0].to(torch.uint8)
        starts, ends = seen.argmax(-1), seen.shape[-1] - seen.flip(-1).argmax(-1)  # argmax takes the first of equals
        if self.checked and not bool((ends - starts == seen.sum(-1)).all()):
            return None
        return Run(starts.expand(batch).contiguous(), ends.expand(batch).contiguous())


def causal(position: Tensor, tokens: int, columns: int) -> Tensor:
    """The mask (B, 1, tokens, columns) of the last of position[b] positions: each sees those up to its own."""
    rows = position[:, None] - tokens + torch.arange(tokens, device=position.device)
    seen: Tensor = torch.arange(columns, device=position.device) <= rows[..., None]
    return seen[:, None]
