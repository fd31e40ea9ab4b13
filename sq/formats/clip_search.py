"""The clip factor that minimizes each row's quantization error, exactly, over a list of candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.compiled import power_sums, residual_sums
from sq.formats.format import Format
from sq.formats.grid import Grid, grid_from_range, row_grid, row_range

# Entries worked on at a time. On a CPU a chunk and its two scratch buffers (3 MB) stay in cache, where an elementwise
# pass is 3x faster than from memory; on a GPU the chunk only bounds the temporaries.
_CPU_CHUNK, _GPU_CHUNK = 2**18, 2**25


def row_chunks(rows: int, n: int, device: torch.device) -> Iterator[slice]:
    """Slices over `rows` rows of n entries that each hold a cache-sized number of entries."""
    step = max(1, (_CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK) // max(1, n))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def grid_by_chunks(
    rows: Tensor, second: Tensor | None, format: Format, grid_of: Callable[[Tensor, Tensor | None], Grid]
) -> Grid:
    """The grid (R, 1) of rows (R, n), `grid_of` giving that of a chunk of float32 rows and their second scales."""
    scale = torch.ones(rows.shape[0], 1, dtype=torch.float32, device=rows.device)
    zero = torch.zeros_like(scale) if format.element.has_zero else None
    for part in row_chunks(rows.shape[0], rows.shape[1], rows.device) if rows.numel() else ():
        grid = grid_of(rows[part].float(), None if second is None else second[part])
        scale[part] = grid.scale
        if zero is not None and grid.zero is not None:
            zero[part] = grid.zero
    return Grid(format, scale, zero, second)


def codes_by_chunks(rows: Tensor, step: Tensor, zero: Tensor | None, format: Format) -> Tensor:
    """Codes of rows (R, n) on the grid of each, whose step and zero point are (R, 1)."""
    codes = torch.empty(rows.shape, dtype=format.element.code_dtype, device=rows.device)
    for part in row_chunks(rows.shape[0], rows.shape[1], rows.device):
        grid = Grid(format, step[part], None if zero is None else zero[part])
        codes[part] = grid.encode(rows[part].float()).to(codes.dtype)
    return codes


def searched_grid(
    rows: Tensor, format: Format, clips: Sequence[float], *, norm: float = 2.0, second: Tensor | None = None
) -> Grid:
    """Grid of each row of float32 rows (R, n) with the clip of least error; one clip alone is taken as it is.

    Where the format has several `spans`, each clip is tried with each of them.
    """
    candidates = [clip * span for span in format.spans for clip in clips]
    if len(candidates) == 1:
        return row_grid(rows, format, candidates[0], second=second)
    return row_grid(rows, format, best_clip(rows, candidates, format, norm=norm, second=second), second=second)


def best_clip(
    rows: Tensor, clips: Sequence[float], format: Format, *, norm: float = 2.0, second: Tensor | None = None
) -> Tensor:
    """Per row the clip that minimizes sum |q(x) - x|^norm; of equal ones the first in clips.

    For norm > 2 most candidates are ruled out without a power function, which costs more than all else together: log
    sum |e|^p is convex in p (Lyapunov's inequality), hence sum |e|^norm >= (sum e^2)^(norm - 1) / (sum |e|)^(norm - 2).
    Only candidates whose bound is below the cost of the candidate with the least bound are evaluated (9 to 17 of 80
    on Gaussian rows at 4 bits and norm 2.4). The result is that of the full search.

    Args:
        rows: (R, n) float32, n > 0; few enough to fit in cache (row_chunks).
        clips: candidates, positive.
        norm: at least 2.
        second: (R, 1), where the format has a second scale.

    Returns: (R, 1) float32. Rows that hold NaN or inf get any candidate.
    """
    if norm < 2:
        raise QuantizationError(f"the norm of the clip search is {norm}; use 2 or more")
    low, high = row_range(rows)
    candidates = torch.tensor(clips, dtype=rows.dtype, device=rows.device)
    # costs in units of the unclipped step stay far from overflow and underflow
    unit = grid_from_range(low, high, format, second=second).step
    bound = _bounds(rows, low, high, clips, unit, format, norm, second)
    if norm == 2:
        return candidates[bound.argmin(0)].unsqueeze(1)

    def cost(index: Tensor, row: Tensor) -> Tensor:
        """Exact costs of (candidate, row) pairs."""
        chosen = candidates[index, None]
        grid = grid_from_range(low[row], high[row], format, chosen, second=None if second is None else second[row])
        zero = None if grid.zero is None else grid.zero.squeeze(1)
        sums = power_sums(rows, row, grid.step.squeeze(1), zero, format.element, norm)
        if sums is not None:
            return sums * (grid.step / unit[row]).squeeze(1).pow_(norm)
        result = torch.empty(row.shape, dtype=rows.dtype, device=rows.device)
        for part in row_chunks(row.shape[0], rows.shape[1], rows.device):
            r, clip = row[part], candidates[index[part], None]
            own = None if second is None else second[r]
            grid = grid_from_range(low[r], high[r], format, clip, second=own)
            x = rows[r]
            e = grid.residual(x, torch.empty_like(x), x).abs_().pow_(norm)
            result[part] = e.sum(1) * (grid.step / unit[r]).squeeze(1).pow_(norm)
        return result

    every = torch.arange(rows.shape[0], device=rows.device)
    first = bound.argmin(0)
    costs = torch.full_like(bound, torch.inf)
    costs[first, every] = cost(first, every)
    # the slack keeps float32 rounding of the bound from ruling out a winner
    open_ = bound * (1 - 1e-4) <= costs[first, every]
    open_[first, every] = False
    row, index = open_.T.nonzero(as_tuple=True)
    costs[index, row] = cost(index, row)
    return candidates[costs.argmin(0)].unsqueeze(1)


def _bounds(
    rows: Tensor,
    low: Tensor,
    high: Tensor,
    clips: Sequence[float],
    unit: Tensor,
    format: Format,
    norm: float,
    second: Tensor | None,
) -> Tensor:
    """What the cost of each clip is at least, (C, R), in units of the unclipped step; the cost itself at norm 2."""

    def bound_of(square: Tensor, magnitude: Tensor, relative: Tensor) -> Tensor:
        if norm > 2:
            least = torch.finfo(rows.dtype).tiny
            square = square.pow(norm - 1).div_(magnitude.clamp_min(least).pow_(norm - 2))
        return square * relative.pow(norm)

    candidates = torch.tensor([clips], dtype=rows.dtype, device=rows.device)
    grid = grid_from_range(low, high, format, candidates, second=second)
    # At norm 2 nothing decides between near ties but the bound itself, which kernels compute as torch does.
    sums = residual_sums(rows, grid.step, grid.zero, format.element) if norm > 2 else None
    if sums is not None:
        return bound_of(*sums, grid.step / unit).T.contiguous()
    bound = rows.new_empty(len(clips), rows.shape[0])
    nearest, error = torch.empty_like(rows), torch.empty_like(rows)
    for number, factor in enumerate(clips):
        grid = grid_from_range(low, high, format, factor, second=second)
        grid.residual(rows, nearest, error)
        square = torch.linalg.vector_norm(error, dim=1).square_()
        bound[number] = bound_of(square, error.abs_().sum(1) if norm > 2 else square, (grid.step / unit).squeeze(1))
    return bound
