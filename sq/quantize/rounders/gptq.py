"""GPTQ: rounding column by column, each column's error made up for by the columns not yet rounded.

Frantar et al. (2210.17323), Algorithm 1, in the form of the peers (QuaRot fake_quant/gptq_utils.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.finite import all_finite
from sq.formats.grid import Grid
from sq.formats.qtensor import QTensor
from sq.formats.weight import WeightQuantizer, quantized
from sq.quantize.rounders.block_walk import walk_block
from sq.quantize.rounders.descent import descend
from sq.quantize.rounders.hessian import inverse_factor, without_dead
from sq.quantize.rounders.rounder import Need, RoundingStatistics, WeightRounder


@dataclass(frozen=True)
class Gptq(WeightRounder):
    """GPTQ of all linears of a site in one walk over the columns: they share one Hessian and one factor.

    Attributes:
        block: columns that are updated at once; it changes the speed and not the result.
        damping: share of the mean diagonal that is added to the Hessian.
        act_order: round columns by falling Hessian diagonal.
        descent: sweeps of coordinate descent behind the walk (`descend`); 0 for GPTQ as published.
        sequential: take the Hessian of a site with the sites before it rounded already.
        quantized_activations: take it of activations that the site's quantizer has rounded, which are what the weights
            multiply at run time. With activations in 16 bits they are the same.
    """

    block: int = 128
    damping: float = 0.01
    act_order: bool = False
    descent: int = 0
    sequential: bool = True
    quantized_activations: bool = False
    needs: ClassVar[frozenset[Need]] = frozenset({"hessian"})
    compensates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.block < 1 or not self.damping >= 0 or self.descent < 0:
            got = f"block={self.block}, damping={self.damping}, descent={self.descent}"
            raise QuantizationError(f"{got}; use block >= 1, damping >= 0, descent >= 0")

    @property
    def sees_rounded_sites(self) -> bool:
        """As `sequential` says."""
        return self.sequential

    @property
    def sees_quantized_activations(self) -> bool:
        """As `quantized_activations` says."""
        return self.quantized_activations

    def round(self, weights: Sequence[Tensor], statistics: RoundingStatistics) -> list[QTensor]:
        """See `gptq`."""
        return self._walk(weights, statistics)

    def _walk(
        self, weights: Sequence[Tensor], statistics: RoundingStatistics, mismatch: Tensor | None = None
    ) -> list[QTensor]:
        assert statistics.hessian is not None, "the pipeline gathers what `needs` names"
        options: dict[str, Any] = {name: getattr(self, name) for name in ("block", "damping", "act_order", "descent")}
        return gptq(weights, statistics.hessian, self.quantizer, name=statistics.name, mismatch=mismatch, **options)


@torch.no_grad()
def gptq(
    weights: Sequence[Tensor],
    hessian: Tensor,
    quantizer: WeightQuantizer,
    *,
    block: int = 128,
    damping: float = 0.01,
    name: str = "gptq",
    retries: int = 2,
    act_order: bool = False,
    descent: int = 0,
    mismatch: Tensor | None = None,
) -> list[QTensor]:
    """Codes of weights w that nearly minimize tr((w - q) H (w - q)^T), H being shared.

    With U upper triangular, U^T U = (H + damping * mean(diag H) * I)^-1, column j in turn is rounded to q_j and every
    later column k gets w_k -= (w_j - q_j) U_jk / U_jj. Columns within a block are updated at once, those behind it by
    one matrix product a block, so `block` changes the speed and not the result. Dead columns (H_jj = 0) get w_j = 0 and
    the mean of the live H_jj, where the peers put 1: that would set the damping by the number of dead columns when
    activations are small, and changes nothing else.

    Scales: one of a whole channel is fixed once from the row (dead columns zeroed, clip search if the quantizer has
    it); those of groups at the start of each group from the updated weights; a second scale once from the weight.
    With a mismatch D, a multiple of sum (x' - x)^T x in H's scale, column j also hands its part of the lost output
    w_j (x'_j - x_j) on to later columns: w_k += w_j P_jk with P = triu(D U^T, 1) U and w_j as it is just before it is
    rounded (GPTAQ, 2504.02692; the peers' code takes q_j for columns behind the block, so that there the block changes
    the result).

    act_order rounds columns by falling H_jj; groups stay groups of neighbouring input features there, so their scales
    are all fixed from the original weights (static groups).

    Args:
        weights: (d_out, d_in) each, any float dtype, of linears that read the same input; computed in float32.
        hessian: (d_in, d_in), float32 or float64, symmetric, in the basis of w's input (conjugate_hessian for a
            transformed one).
        quantizer: format and clip.
        block: columns a block; shrunk so that groups and blocks align.
        mismatch: D (d_in, d_in), dtype and basis of hessian, or None for plain GPTQ.
        damping, retries: see inverse_factor.
        descent: sweeps of coordinate descent behind the walk, of codes and scales.
        name: for messages, such as "layer 3, qkv".

    Raises:
        QuantizationError: NaN or inf in w or hessian, shapes that do not fit, a negative H_jj, or a Hessian that cannot
            be factored.
    """
    if block < 1 or not damping >= 0 or retries < 0:
        raise QuantizationError(f"{name}: {block=}, {damping=}, {retries=}; use block >= 1, damping >= 0, retries >= 0")
    _check(weights, hessian, quantizer, name)
    check_mismatch(mismatch, hessian, name)
    format, sizes, d_in = quantizer.format, [len(w) for w in weights], weights[0].shape[1]
    size = format.group or d_in
    hessian, dead = without_dead(hessian)
    parts = [w.to(torch.float32, copy=True) for w in weights]
    for part in parts:
        part.masked_fill_(dead, 0)

    static = act_order or format.group is None
    grid = _stacked([quantizer.grid(part) for part in parts], sizes)
    weight = torch.cat(parts)
    order = torch.arange(d_in, device=weight.device)
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
        mismatch = None if mismatch is None else mismatch[order][:, order]
    factor = inverse_factor(hessian, damping, retries=retries, name=name)
    pull = None if mismatch is None else _pull(mismatch, factor)
    group_of = (order // size).tolist()
    columns = weight.T[order].contiguous()  # (d_in, d_out): one column of w is contiguous
    codes = torch.empty(d_in, len(weight), dtype=format.element.code_dtype, device=weight.device)
    unwalked = (columns.clone(), hessian, mismatch) if descent else None
    del hessian, mismatch

    step = block if static else _aligned(block, size)
    inner = step if static else min(step, size)  # within which no scale changes
    for start in range(0, d_in, step):
        end = min(start + step, d_in)
        errors = torch.empty(end - start, len(weight), device=weight.device)
        for first in range(start, end, inner):
            last = min(first + inner, end)
            if not static and first % size == 0:
                g = group_of[first]
                fresh = quantizer.grid(columns[first : first + size].T, grid.second)
                grid.scale[:, g] = fresh.scale[:, 0]
                if grid.zero is not None and fresh.zero is not None:
                    grid.zero[:, g] = fresh.zero[:, 0]
                grid = replace(grid)  # a grid keeps the steps it was asked for
            own, made = slice(first, last), errors[first - start : last - start]
            within = None if pull is None else pull[own, own]
            walk_block(columns[own], grid, group_of[own], factor[own, own], within, codes[own], made)
            if last < end:
                columns[last:end].addmm_(factor[own, last:end].T, made, alpha=-1)
                if pull is not None:
                    columns[last:end].addmm_(pull[own, last:end].T, columns[own])
        columns[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
        if pull is not None:
            columns[end:].addmm_(pull[start:end, end:].T, columns[start:end])
    if unwalked is not None:
        original, hessian, mismatch = unwalked
        codes, grid = descend(
            original, codes, hessian, grid, group_of, sweeps=descent, damping=damping, block=block, mismatch=mismatch
        )
    result = torch.empty_like(codes)
    result[order] = codes
    ends = list(accumulate(sizes))
    return [
        quantized(own.T.contiguous(), _rows(grid, slice(end - size, end)))
        for own, size, end in zip(result.split(sizes, dim=1), sizes, ends, strict=True)
    ]


def _pull(mismatch: Tensor, factor: Tensor) -> Tensor:
    """P = triu(D U^T, 1) U, strictly upper triangular, in the dtype of U (n, n); computed in that of D."""
    upper = factor.to(mismatch.dtype)
    return ((mismatch @ upper.T).triu_(1) @ upper).triu_(1).to(factor.dtype)


def _stacked(grids: Sequence[Grid], sizes: Sequence[int]) -> Grid:
    """Grids of several weights as one of all their rows; one scale a tensor, (1, 1), is repeated for each row."""

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(grid, name).expand(size, -1) for grid, size in zip(grids, sizes, strict=True)])

    zero, second = (None if getattr(grids[0], name) is None else joined(name) for name in ("zero", "second"))
    return Grid(grids[0].format, joined("scale"), zero, second)


def _rows(grid: Grid, part: slice) -> Grid:
    """The grid of some rows; one scale a tensor becomes (1, 1) again."""
    kept = slice(part.start, part.start + 1) if grid.format.tensor else part
    zero = None if grid.zero is None else grid.zero[kept].clone()
    return Grid(grid.format, grid.scale[kept].clone(), zero, None if grid.second is None else grid.second[part])


def _aligned(block: int, size: int) -> int:
    """The block size at most `block` that is a multiple or, for groups wider than a block, a divisor of the group size.

    A group's scale is read when all columns before the group have been applied to all of it: the group starts a block,
    or lies within one.
    """
    if size <= block:
        return block - block % size
    return max(step for step in range(1, block + 1) if size % step == 0)


def check_mismatch(mismatch: Tensor | None, hessian: Tensor, what: str) -> None:
    """Raise QuantizationError for a D that does not fit H or holds NaN or inf."""
    if mismatch is not None and mismatch.shape != hessian.shape:
        got = f"the mismatch has shape {tuple(mismatch.shape)}, the Hessian {tuple(hessian.shape)}"
        raise QuantizationError(f"{what}: {got}; take both of one site")
    if mismatch is not None and not all_finite(mismatch):
        raise QuantizationError(f"{what}: the mismatch holds NaN or inf; look for them in this site's activations")


def _check(weights: Sequence[Tensor], hessian: Tensor, quantizer: WeightQuantizer, what: str) -> None:
    for w in weights:
        try:
            quantizer.check(w)
        except QuantizationError as error:
            raise QuantizationError(f"{what}: {error}") from error
    widths = sorted({w.shape[1] for w in weights})
    if len(widths) > 1:
        raise QuantizationError(f"{what}: weights of {widths} input features share no Hessian; give one site at a time")
    if hessian.shape != (widths[0], widths[0]):
        needs = f"a weight {tuple(weights[0].shape)} needs {(widths[0], widths[0])}"
        raise QuantizationError(f"{what}: the Hessian has shape {tuple(hessian.shape)}; {needs}")
    if not all_finite(hessian):
        raise QuantizationError(f"{what}: the Hessian holds NaN or inf; look for them in this site's activations")
    if (hessian.diagonal() < 0).any():
        raise QuantizationError(f"{what}: the Hessian has a negative diagonal entry; pass a second moment, x^T x")
