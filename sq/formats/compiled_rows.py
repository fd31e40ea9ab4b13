"""Rounding of tokens compiled for the CPU: the ends of each row in one read of it, and its levels in another.

numba compiles both when they are first needed (kept in its cache for the next process). Where numba is missing rows are
rounded in torch, with the same result to the last bit, and that is said once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sq.formats.elements import Element, Integers
from sq.formats.grid import Grid
from sq.kernels.compiled import has_numba, in_parts

LEAST = 2**14  # entries, below which a call costs more than it saves
PART = 2**15  # entries a thread takes at least


def takes_rows(rows: Tensor, element: Element) -> bool:
    """Whether rows (R, n) are float32 of a CPU, many enough, of integer levels, and numba is there."""
    fits = rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.numel() >= LEAST
    return fits and isinstance(element, Integers) and _compiled() is not None


def row_ends(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`row_range` of rows that `takes_rows` admits: smallest and largest entry, (R, 1); NaN where a row holds one."""
    compiled = _compiled()
    assert compiled is not None
    ends = torch.empty(2, len(rows), 1)
    keys = ends.view(torch.int32).numpy()
    x = rows.detach().contiguous().view(torch.int32).numpy()

    def part(first: int, last: int) -> None:
        compiled[0](x[first:last], keys[0, first:last, 0], keys[1, first:last, 0])

    in_parts(part, len(x), -(-PART // x.shape[1]))
    return ends[0], ends[1]


def round_rows(rows: Tensor, grid: Grid, out: Tensor) -> None:
    """out = levels nearest to rows (R, n) that `takes_rows` admits, on a grid (R, 1); out is float32 and contiguous."""
    compiled, element = _compiled(), grid.format.element
    assert compiled is not None
    assert isinstance(element, Integers)
    step = grid.step.contiguous()
    arrays = (step if grid.zero is None else grid.zero.contiguous(), step, rows.detach().contiguous(), out)
    zero, scale, x, levels = (array.numpy() for array in arrays)
    low, high = torch.tensor(element.code_range, dtype=torch.float32).numpy()
    kind = 1 if element.scheme == "midrise" else 2 if element.has_zero else 0

    def part(first: int, last: int) -> None:
        own = slice(first, last)
        compiled[1](x[own], scale[own, 0], zero[own, 0], levels[own], kind, low, high)

    in_parts(part, len(x), -(-PART // x.shape[1]))


@cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    if not has_numba("activations are rounded in torch, some twice as long"):
        return None
    import numba
    import numpy as np

    # As integers of their bits, the magnitudes of negative ones inverted, floats have the order of their values, and
    # NaN lies beyond both infinities. A loop over integers is vectorized, one over floats that may be NaN is not.
    magnitude, infinity, nan = np.int32(0x7FFFFFFF), np.int32(0x7F800000), np.int32(0x7FC00000)
    below = np.int32(-1) - infinity  # -infinity, inverted
    shift = np.int32(31)

    @numba.njit(cache=True, nogil=True)
    def ends(x, low, high):  # type: ignore[no-untyped-def]
        for r in range(x.shape[0]):
            row = x[r]
            least, most = magnitude, np.int32(-1) - magnitude
            for j in range(row.shape[0]):
                bits = row[j]
                key = bits ^ ((bits >> shift) & magnitude)
                least = key if key < least else least
                most = key if key > most else most
            if least < below or most > infinity:
                low[r] = nan
                high[r] = nan
            else:
                low[r] = least ^ ((least >> shift) & magnitude)
                high[r] = most ^ ((most >> shift) & magnitude)

    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def fake(x, step, zero, out, kind, low, high):  # type: ignore[no-untyped-def]
        half = np.float32(0.5)
        for r in range(x.shape[0]):
            row, levels, s, z = x[r], out[r], step[r], zero[r]
            if kind == 1:
                for j in range(row.shape[0]):
                    q = np.floor(row[j] / s)
                    q = low if q < low else q
                    q = high if q > high else q
                    levels[j] = (q + half) * s
            elif kind == 2:
                for j in range(row.shape[0]):
                    q = np.rint(row[j] / s) + z
                    q = low if q < low else q
                    q = high if q > high else q
                    levels[j] = (q - z) * s
            else:
                for j in range(row.shape[0]):
                    q = np.rint(row[j] / s)
                    q = low if q < low else q
                    q = high if q > high else q
                    levels[j] = q * s

    return ends, fake
