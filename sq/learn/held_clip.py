"""Rounding of weights that change a little each step, with a clip search every few steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sq.formats.clip_search import row_chunks
from sq.formats.grid import row_grid
from sq.formats.straight_through import straight_through
from sq.formats.weight import WeightQuantizer


class HeldClip:
    """Rounds weights as a `WeightQuantizer` does, straight through, but searches their clip factors only now and then.

    Between searches each row (group) keeps its factor p, and its grid still follows its range: scale = p max|w| /
    qmax. A row's best factor changes slowly, and a search over 80 candidates costs many times what rounding does.

    A search comes every `interval` steps. `factors` has p of each row (group) of each weight as of its last search,
    (rows, 1), to be kept when training is resumed. Without a quantizer weights stay as they are.
    """

    def __init__(self, quantizer: WeightQuantizer | None, interval: int) -> None:
        self.quantizer, self.interval = quantizer, interval
        self.factors: dict[str, Tensor] = {}
        self._searched: dict[str, int] = {}

    def __call__(self, name: str, w: Tensor, step: int) -> Tensor:
        """w (d_out, d_in), the weight called `name`, rounded in training step `step` (from 0), straight through."""
        if self.quantizer is None:
            return w
        if self.quantizer.clip != "search":
            return self.quantizer(w)
        due = step % self.interval == 0 and self._searched.get(name) != step
        if due or name not in self.factors:
            found, full = (q.grid(w.detach()) for q in (self.quantizer, replace(self.quantizer, clip=1.0)))
            self.factors[name] = (found.scale / full.scale).reshape(-1, 1)
            self._searched[name] = step
        return straight_through(w, lambda weight: self._fake(weight, self.factors[name]))

    def _fake(self, w: Tensor, factors: Tensor) -> Tensor:
        assert self.quantizer is not None
        rows, second = self.quantizer.rows(w, self.quantizer.second(w))
        out = torch.empty_like(rows)
        for part in row_chunks(rows.shape[0], rows.shape[1], rows.device):
            chunk = rows[part].float()
            own = None if second is None else second[part]
            out[part] = row_grid(chunk, self.quantizer.format, factors[part], second=own).fake(chunk)
        return out.view_as(w)
