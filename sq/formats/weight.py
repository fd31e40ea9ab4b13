"""Quantization of weights: a scale for each output channel, each group of its input features, or the whole tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.finite import all_finite
from sq.formats.clip_search import codes_by_chunks, grid_by_chunks, searched_grid
from sq.formats.format import Format
from sq.formats.grid import Grid, second_scale
from sq.formats.qtensor import QTensor
from sq.formats.straight_through import straight_through


@dataclass(frozen=True)
class WeightQuantizer:
    """Rounds weights (d_out, d_in) to a format.

    With clip="search" the range of each channel (group) shrinks to the factor p = 1 - i / search_grid, i = 0 ..
    max_shrink * search_grid - 1, with the least sum |q(w) - w|^norm (QuaRot fake_quant/quant_utils.py, WeightQuantizer
    with mse=True).

    Args:
        format: of the codes.
        clip: factor on the range in (0, 1], or "search": per channel (group) the one of least error.
        norm, search_grid, max_shrink: the search, as above; norm at least 2, max_shrink in (0, 1).
        peak: largest magnitude of the weights that share a second scale; None: of each weight alone.

    Raises:
        QuantizationError: an argument out of range. The methods raise it for a weight that is not a matrix, whose d_in
            the format's groups do not divide, or that holds NaN or inf.
    """

    format: Format
    clip: float | Literal["search"] = "search"
    norm: float = 2.4
    search_grid: int = 100
    max_shrink: float = 0.8
    peak: float | None = None

    def __post_init__(self) -> None:
        if self.clip != "search" and not (isinstance(self.clip, (int, float)) and 0 < self.clip <= 1):
            raise QuantizationError(f'clip is {self.clip!r}; use a number in (0, 1] or "search"')
        if self.norm < 2:
            raise QuantizationError(f"the norm of the clip search is {self.norm}; use 2 or more")
        if not (0 < self.max_shrink < 1 and int(self.max_shrink * self.search_grid) >= 1):
            given = f"max_shrink {self.max_shrink} and search_grid {self.search_grid} leave no clip factor to search"
            use = "use max_shrink in (0, 1) with max_shrink * search_grid at least 1, or a number for clip"
            raise QuantizationError(f"{given}; {use}")

    def __call__(self, w: Tensor) -> Tensor:
        """w rounded to its levels: shape and dtype of w. The gradient passes straight through."""
        return straight_through(w, lambda weight: self.quantize(weight).dequantize(weight.dtype))

    @torch.no_grad()
    def grid(self, w: Tensor, second: Tensor | None = None) -> Grid:
        """The grid of w (d_out, d_in): scale (d_out, G), (1, 1) for one scale a tensor; `second` (d_out, 1) is w's own
        unless given."""
        self.check(w)
        second = self.second(w) if second is None else second

        def grid_of(rows: Tensor, own: Tensor | None) -> Grid:
            return searched_grid(rows, self.format, self._clips, norm=self.norm, second=own)

        grid, groups = grid_by_chunks(*self.rows(w, second), self.format, grid_of), self.format.groups(w.shape[1])
        zero = None if grid.zero is None else grid.zero.view(-1, groups)
        return Grid(self.format, grid.scale.view(-1, groups), zero, second)

    @torch.no_grad()
    def quantize(self, w: Tensor) -> QTensor:
        """Round w (d_out, d_in), any float dtype, to nearest."""
        grid = self.grid(w)
        rows, _ = self.rows(w, None)
        zero = None if grid.zero is None else grid.zero.reshape(-1, 1)
        codes = codes_by_chunks(rows, grid.step.reshape(-1, 1), zero, self.format)
        return quantized(codes.view(w.shape), grid)

    def joined(self, weights: Sequence[Tensor]) -> WeightQuantizer:
        """For weights that engines join: with one second scale for all, where the format has such (`Format.static`)."""
        if not self.format.static:
            return self
        return replace(self, peak=max(float(w.abs().amax()) for w in weights))

    def rows(self, w: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """w (d_out, d_in) as rows of one scale each, and the second scale (d_out, 1) of each row."""
        if self.format.tensor:
            return w.reshape(1, -1), None
        groups = self.format.groups(w.shape[1])
        return w.reshape(-1, w.shape[1] // groups), None if second is None else second.repeat_interleave(groups, dim=0)

    def second(self, w: Tensor) -> Tensor | None:
        """The second scale of a weight (d_out, 1), of a format that has one."""
        if not self.format.second:
            return None
        peak = w.abs().amax().float() if self.peak is None else torch.tensor(self.peak, device=w.device)
        return second_scale(peak.reshape(1, 1).expand(len(w), 1), self.format)

    def check(self, w: Tensor) -> None:
        """Raise QuantizationError unless w is a finite matrix whose d_in the format's groups divide."""
        if w.ndim != 2 or w.shape[1] == 0:
            raise QuantizationError(f"the weight has shape {tuple(w.shape)}; use (d_out, d_in) with d_in at least 1")
        self.format.groups(w.shape[1])
        if not all_finite(w):
            count = int((~torch.isfinite(w)).sum())
            raise QuantizationError(f"{count} of the weight's {w.numel()} entries are NaN or inf; check its checkpoint")

    @property
    def _clips(self) -> list[float]:
        if isinstance(self.clip, str):
            return [1 - i / self.search_grid for i in range(int(self.max_shrink * self.search_grid))]
        return [self.clip]


def quantized(codes: Tensor, grid: Grid) -> QTensor:
    """A weight from its codes (d_out, d_in) and its grid, whose rows share one second scale."""
    second = None if grid.second is None else grid.second[0, 0].clone()
    return QTensor(grid.format, codes, grid.scale, grid.zero, second)
