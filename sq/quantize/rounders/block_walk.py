"""The columns of one block of GPTQ in turn: rounded, and their errors handed on within the block.

On a CPU numba compiles it: one call a block, rows in tiles that stay in cache. Elsewhere, and for elements that are not
integers, it takes nine torch calls a column, with the same result up to the last bits of float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sq.formats.elements import Integers
from sq.formats.grid import Grid
from sq.kernels.compiled import has_numba, in_parts

TILE = 128  # rows at a time: with 128 columns 64 KB, half of that in each of two caches


def walk_block(
    columns: Tensor,
    grid: Grid,
    groups: Sequence[int],
    factor: Tensor,
    pull: Tensor | None,
    codes: Tensor,
    errors: Tensor,
) -> None:
    """Round b columns: q_j of w_j, e_j = (w_j - q_j) / U_jj, then w_k += w_j P_jk - e_j U_jk for k > j in the block.

    Args:
        columns: w (b, d_out), float32; each is left as it was just before it was rounded.
        grid: scales (d_out, G) of all groups of a row.
        groups: of the b columns.
        factor, pull: the block's parts of U and P (b, b); P is None without a mismatch.
        codes, errors: written, (b, d_out); errors is float32 and contiguous.
    """
    element = grid.format.element
    compiled = _compiled() if columns.device.type == "cpu" and isinstance(element, Integers) else None
    if compiled is None:
        for j, group in enumerate(groups):
            column = grid.column(group)
            q = column.encode(columns[j])
            codes[j] = q.to(codes.dtype)
            error = torch.sub(columns[j], column.decode_(q), out=errors[j]).div_(factor[j, j])
            columns[j + 1 :].addr_(factor[j, j + 1 :], error, alpha=-1)
            if pull is not None:
                columns[j + 1 :].addr_(pull[j, j + 1 :], columns[j])
        return
    assert isinstance(element, Integers)
    steps = grid.step.T.contiguous()
    zeros = torch.zeros_like(steps) if grid.zero is None else grid.zero.T.contiguous()
    found = torch.empty_like(errors)
    low, high = torch.tensor(element.code_range, dtype=torch.float32).numpy()
    own = torch.tensor(groups, dtype=torch.int64).numpy()
    u = factor.contiguous().numpy()
    p = torch.empty(0, 0).numpy() if pull is None else pull.contiguous().numpy()
    arrays = (columns.numpy(), steps.numpy(), zeros.numpy(), found.numpy(), errors.numpy())

    def part(first: int, last: int) -> None:
        compiled(*(array[:, first:last] for array in arrays), own, u, p, low, high, element.scheme == "midrise")

    in_parts(part, columns.shape[1], TILE)
    codes.copy_(found)


@cache
def _compiled() -> Callable[..., Any] | None:
    if not has_numba("GPTQ's columns are walked in torch, some four times as long"):
        return None
    import numba
    import numpy as np

    @numba.njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
    def walk(columns, steps, zeros, codes, errors, groups, factor, pull, low, high, midrise):  # type: ignore[no-untyped-def]
        half = np.float32(0.5)
        for first in range(0, columns.shape[1], TILE):
            last = min(first + TILE, columns.shape[1])
            for j in range(columns.shape[0]):
                w, q, e = columns[j, first:last], codes[j, first:last], errors[j, first:last]
                step, zero = steps[groups[j], first:last], zeros[groups[j], first:last]
                pivot = factor[j, j]
                if midrise:
                    for r in range(last - first):
                        q[r] = min(max(np.floor(w[r] / step[r]), low), high)
                        e[r] = (w[r] - (q[r] + half) * step[r]) / pivot
                else:
                    for r in range(last - first):
                        q[r] = min(max(np.rint(w[r] / step[r]) + zero[r], low), high)
                        e[r] = (w[r] - (q[r] - zero[r]) * step[r]) / pivot
                for k in range(j + 1, columns.shape[0]):
                    later, u = columns[k, first:last], factor[j, k]
                    if pull.shape[0]:
                        p = pull[j, k]
                        for r in range(last - first):
                            later[r] = later[r] - u * e[r] + p * w[r]
                    else:
                        for r in range(last - first):
                            later[r] -= u * e[r]

    return walk
