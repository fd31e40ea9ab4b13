"""The levels of some rows: a format with the scales that the rows got."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sq.formats.format import Format


@dataclass(frozen=True)
class Grid:
    """Levels; scale, zero and second broadcast against what is rounded.

    Attributes:
        format: which levels the codes stand for.
        scale: float32, positive (NaN or inf for rows that hold NaN or inf), representable in the format's scale type.
        zero: integer-valued float32 of scale's shape, where the format has zero points, else None.
        second: float32, where the format has a second scale, else None.
    """

    format: Format
    scale: Tensor
    zero: Tensor | None = None
    second: Tensor | None = None

    @cached_property
    def step(self) -> Tensor:
        """scale times second: what one unit of a level is worth."""
        return self.scale if self.second is None else self.scale * self.second

    def encode(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Integer-valued float32 codes of float32 x, written to out if given."""
        return self.format.element.codes_(torch.div(x, self.step, out=out), self.zero)

    def decode_(self, codes: Tensor) -> Tensor:
        """Values of float32 codes, in place."""
        return self.format.element.levels_(codes, self.zero).mul_(self.step)

    def fake(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x rounded to the levels, float32; out may be x itself."""
        return self.format.element.nearest_(torch.div(x, self.step, out=out), self.zero).mul_(self.step)

    def residual(self, x: Tensor, scratch: Tensor, out: Tensor) -> Tensor:
        """(x - its level) / step, written to out. All three are float32 and of x's shape."""
        return self.format.element.residual_(torch.div(x, self.step, out=out), self.zero, scratch)

    def column(self, group: int) -> Grid:
        """The grid of one group of every row, for grids of shape (rows, groups)."""
        second = None if self.second is None else self.second[:, 0]
        return Grid(self.format, self.scale[:, group], None if self.zero is None else self.zero[:, group], second)


def row_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest entry along the last axis (..., 1); NaN if the row holds one."""
    return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)


def second_scale(peak: Tensor, format: Format) -> Tensor | None:
    """The scale on top of the others, of shape of `peak` (largest magnitudes); None for a format without one.

    peak / (largest scale * largest level): the largest scale is the largest number of its type. 1 for a peak of 0.
    """
    if not format.second:
        return None
    scale = peak.to(torch.float32) / (format.scale.largest * format.element.top)
    return torch.where(scale == 0, 1.0, scale)


def grid_from_range(
    low: Tensor, high: Tensor, format: Format, clip: float | Tensor = 1.0, *, second: Tensor | None = None
) -> Grid:
    """Grid of rows whose entries span [low, high], float32 of one shape, times clip.

    clip, and the second scale (`second_scale`) of a format that has one, broadcast against low.
    """
    scale, zero = format.element.span(low, high, clip, include_zero=format.include_zero, power=format.scale.is_power)
    return Grid(format, format.scale.round(scale if second is None else scale / second), zero, second)


def row_grid(x: Tensor, format: Format, clip: float | Tensor = 1.0, *, second: Tensor | None = None) -> Grid:
    """Grid of each row of float32 x (..., n): scale (..., 1)."""
    return grid_from_range(*row_range(x), format, clip, second=second)
