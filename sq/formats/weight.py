"""Quantization of weights, per output channel or per group of input features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.clip_search import best_clip, row_chunks
from sq.formats.grid import UNQUANTIZED_BITS, Grid, Scheme, check_bits, code_dtype, row_grid
from sq.formats.straight_through import straight_through


@dataclass(frozen=True)
class QuantizedWeight:
    """Integer codes of a weight and what turns them back into numbers.

    Attributes:
        codes: (d_out, d_in), int8, uint8 for asymmetric; at 16 bits the weight itself.
        scale: (d_out, G) float32, G = d_in / group_size groups, 1 per channel.
        zero: (d_out, G) float32 for asymmetric, else None.
        bits: 2..8, or 16 for an unquantized weight.
        scheme: "symmetric" | "asymmetric" | "midrise".
        group_size: input features that share a scale; None for a whole channel.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    scheme: Scheme
    group_size: int | None = None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (d_out, d_in) that the codes stand for, computed in float32."""
        if self.bits == UNQUANTIZED_BITS:
            return self.codes.to(dtype)
        zero = None if self.zero is None else self.zero.unsqueeze(-1)
        grid = Grid(self.bits, self.scheme, self.scale.unsqueeze(-1), zero)
        size = self.codes.shape[1] // self.scale.shape[1]
        values = self.codes.to(torch.float32)
        grid.decode_(values.view(*self.scale.shape, size))
        return values.to(dtype)

    def nbytes(self) -> int:
        """Bytes when packed: bits / 8 per weight (2 at 16 bits), and 2 for each float16 scale and zero."""
        size = -(-self.codes.numel() * self.bits // 8)
        if self.bits == UNQUANTIZED_BITS:
            return size
        return size + 2 * self.scale.numel() + (0 if self.zero is None else 2 * self.zero.numel())


@dataclass(frozen=True)
class WeightQuantizer:
    """Rounds weights (d_out, d_in) to a grid per output channel, or per group of group_size input features.

    With clip="search" the range of each channel (group) shrinks to the factor p = 1 - i / search_grid, i = 0 ..
    max_shrink * search_grid - 1, with the least sum |q(w) - w|^norm (QuaRot fake_quant/quant_utils.py, WeightQuantizer
    with mse=True). Grids and rounding: sq/formats/grid.py. As for activations, a group's asymmetric range is not
    widened to hold 0, a channel's is.

    Args:
        bits: 2..8, or 16 for no quantization.
        scheme: "symmetric" | "asymmetric" | "midrise".
        group_size: a divisor of d_in; None for one grid per channel.
        clip: factor on the range in (0, 1], or "search": per channel (group) the one of least error.
        norm, search_grid, max_shrink: the search, as above; norm at least 2, max_shrink in (0, 1).

    Raises:
        QuantizationError: an argument out of range. The methods raise it for a weight that is not a matrix, whose d_in
            group_size does not divide, or that holds NaN or inf.
    """

    bits: int
    scheme: Scheme = "symmetric"
    group_size: int | None = None
    clip: float | Literal["search"] = "search"
    norm: float = 2.4
    search_grid: int = 100
    max_shrink: float = 0.8

    def __post_init__(self) -> None:
        check_bits(self.bits, self.scheme)
        if self.group_size is not None and self.group_size < 1:
            raise QuantizationError(
                f"group_size is {self.group_size}; use a divisor of d_in, or None for whole channels"
            )
        if self.clip != "search" and not (isinstance(self.clip, (int, float)) and 0 < self.clip <= 1):
            raise QuantizationError(f'clip is {self.clip!r}; use a number in (0, 1] or "search"')
        if self.norm < 2:
            raise QuantizationError(f"the norm of the clip search is {self.norm}; use 2 or more")
        if not (0 < self.max_shrink < 1 and int(self.max_shrink * self.search_grid) >= 1):
            raise QuantizationError(
                f"max_shrink {self.max_shrink} and search_grid {self.search_grid} leave no clip factor to search; "
                "use max_shrink in (0, 1) with max_shrink * search_grid at least 1, or a number for clip"
            )

    def __call__(self, w: Tensor) -> Tensor:
        """w rounded to its grids: shape and dtype of w. The gradient passes straight through."""
        return straight_through(w, lambda weight: self.quantize(weight).dequantize(weight.dtype))

    @torch.no_grad()
    def grid(self, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale (d_out, G) and zero (d_out, G) or None of w (d_out, d_in), float32."""
        self.check(w)
        groups = 1 if self.group_size is None else w.shape[1] // self.group_size
        if self.bits == UNQUANTIZED_BITS:
            return torch.ones(w.shape[0], groups, device=w.device), None
        rows = w.reshape(-1, w.shape[1] // groups)
        scale = torch.empty(rows.shape[0], 1, device=w.device)
        zero = torch.empty_like(scale) if self.scheme == "asymmetric" else None
        for part in row_chunks(rows.shape[0], rows.shape[1], w.device):
            grid = self._row_grid(rows[part].float())
            scale[part] = grid.scale
            if zero is not None and grid.zero is not None:
                zero[part] = grid.zero
        return scale.view(-1, groups), None if zero is None else zero.view(-1, groups)

    @torch.no_grad()
    def quantize(self, w: Tensor) -> QuantizedWeight:
        """Round w (d_out, d_in), any float dtype, to nearest."""
        scale, zero = self.grid(w)
        if self.bits == UNQUANTIZED_BITS:
            return QuantizedWeight(w, scale, None, self.bits, self.scheme, self.group_size)
        size = w.shape[1] // scale.shape[1]
        rows, codes = w.reshape(-1, size), torch.empty(w.shape, dtype=code_dtype(self.scheme), device=w.device)
        for part in row_chunks(rows.shape[0], rows.shape[1], w.device):
            zeros = None if zero is None else zero.view(-1, 1)[part]
            grid = Grid(self.bits, self.scheme, scale.view(-1, 1)[part], zeros)
            codes.view(-1, size)[part] = grid.encode(rows[part].float()).to(codes.dtype)
        return QuantizedWeight(codes, scale, zero, self.bits, self.scheme, self.group_size)

    def check(self, w: Tensor) -> None:
        """Raise QuantizationError unless w is a finite matrix whose d_in group_size divides."""
        if w.ndim != 2 or w.shape[1] == 0:
            raise QuantizationError(f"the weight has shape {tuple(w.shape)}; use (d_out, d_in) with d_in at least 1")
        if self.group_size is not None and w.shape[1] % self.group_size:
            raise QuantizationError(
                f"group_size {self.group_size} does not divide d_in {w.shape[1]}; use a divisor or None (a channel)"
            )
        if not torch.isfinite(w).all():
            count = int((~torch.isfinite(w)).sum())
            raise QuantizationError(f"{count} of the weight's {w.numel()} entries are NaN or inf; check its checkpoint")

    def _row_grid(self, rows: Tensor) -> Grid:
        include_zero = self.group_size is None
        clip: float | Tensor
        if isinstance(self.clip, str):
            clips = [1 - i / self.search_grid for i in range(int(self.max_shrink * self.search_grid))]
            clip = best_clip(rows, clips, self.bits, self.scheme, include_zero=include_zero, norm=self.norm)
        else:
            clip = self.clip
        return row_grid(rows, self.bits, self.scheme, clip, include_zero=include_zero)
