"""Jacobi sweeps of the fourth-moment rotation compiled for the CPU: one read and one write of the samples a step.

Rows stay where they are and an index says which of them meet. A step walks over slices of tokens: it turns the pairs of
the step before, and sums each of its own pairs while the rows are in the L1 cache. README.md beside this file says how
much faster that is than the form in torch (kurtosis.py), the reference, which takes over where numba is missing. numba
compiles it when it is first needed (1.3 s, kept in its cache for the next process).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from sq.kernels.compiled import has_numba
from sq.rotation.samples import ENTRIES_PER_THREAD

WIDTH = 1024  # tokens of a slice: the six rows in use at a time then fill half of an L1 cache of 48 kB


def compiled_sweeps(rows: Tensor, sweeps: int, following: Tensor) -> Tensor | None:
    """R^T (m, m), float64, from samples as channel rows (m, T); rows keep their values.

    Sums of a slice are float32, in any order; sums over slices, angles and R are float64.

    Args:
        rows: (m, T), m >= 2.
        sweeps: times every pair is met.
        following: (size,), the place each row comes from after a step; size is m, or m + 1 for odd m, where place 0
            has no row. The rows at places k and size / 2 + k meet.

    Returns: None for what is not compiled: other devices than the CPU, other dtypes than float32, numba missing.
    """
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or (step := _compiled()) is None:
        return None
    import numpy as np

    m, size = len(rows), len(following)
    workers = max(1, min(torch.get_num_threads(), rows.numel() // ENTRIES_PER_THREAD))
    slices = [part.numpy() for part in _slices(rows).tensor_split(workers)]
    columns = [part.contiguous().numpy() for part in torch.eye(m, dtype=torch.float64).tensor_split(workers, dim=1)]
    known, sums = np.zeros((2, workers, 3, m // 2))  # sums of zero: the first step turns by nothing
    after = following.numpy()
    places = np.argsort(after) + m - size  # the first step's pairs are those that follow
    with ThreadPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        each = map if pool is None else pool.map
        for _ in range(sweeps * (size - 1)):
            for _ in each(step, slices, columns, repeat(places), repeat(after), repeat(known), sums):
                pass
            known, sums, places = sums, known, places[after]
    for part, own in zip(columns, sums, strict=True):
        step(slices[0][:0], part, places, after, known, own)
    return torch.cat([torch.from_numpy(part) for part in columns], dim=1)


def _slices(rows: Tensor) -> Tensor:
    """Rows (m, T) as slices (S, m, W), contiguous; the last is filled up with zeros, which add nothing to a sum."""
    m, tokens = rows.shape
    count = -(-tokens // WIDTH)
    width = -(-tokens // count)
    slices, whole = rows.new_zeros(count, m, width), tokens // width
    slices[:whole] = rows[:, : whole * width].unflatten(1, (whole, width)).transpose(0, 1)
    slices[whole:, :, : tokens - whole * width] = rows[:, whole * width :]
    return slices


@cache
def _compiled() -> Callable[..., Any] | None:
    if not has_numba("fourth-moment rotations run in torch, some ten times as long"):
        return None
    import numba
    import numpy as np

    # Sums in any order, or the loops over tokens would not be vectorized; nothing else is relaxed. It is one function:
    # numba finds no function in its cache that calls another one made here.
    @numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
    def step(slices, columns, places, after, known, sums):  # type: ignore[no-untyped-def]
        """Turn the pairs at `places` by the angles of `known`, then sum A, 2 B and 4 C of the pairs that meet next."""
        half, pairs = len(places) // 2, sums.shape[1]
        c, s = np.empty(pairs), np.empty(pairs)
        for k in range(pairs):
            theta = np.arctan2(known[:, 1, k].sum(), known[:, 0, k].sum() - known[:, 2, k].sum() / 4) / 4
            c[k], s[k] = np.cos(theta), np.sin(theta)
        left, right = places[half - pairs : half], places[len(places) - pairs :]
        order = places[after]
        next_left, next_right = order[half - pairs : half], order[len(places) - pairs :]
        sums[:] = 0
        for i in range(len(slices)):  # an iterator would give parts of unknown strides, which are not vectorized
            part = slices[i]
            # Rows of the next pair k - 1 come from pairs up to k: when k is turned they are in the L1 cache.
            for k in range(pairs + 1):
                if k < pairs:
                    x, y, low_c, low_s = part[left[k]], part[right[k]], np.float32(c[k]), np.float32(s[k])
                    for t in range(x.shape[0]):
                        first, second = x[t], y[t]
                        x[t] = low_c * first + low_s * second
                        y[t] = low_c * second - low_s * first
                if k > 0:
                    x, y = part[next_left[k - 1]], part[next_right[k - 1]]
                    sum_a, sum_b, sum_c = np.float32(0), np.float32(0), np.float32(0)
                    for t in range(x.shape[0]):
                        first, second = x[t], y[t]
                        p, q = first * second, second * second - first * first
                        sum_a += p * p
                        sum_b += p * q
                        sum_c += q * q
                    sums[0, k - 1] += sum_a
                    sums[1, k - 1] += sum_b
                    sums[2, k - 1] += sum_c
        for k in range(pairs):
            u, v = columns[left[k]], columns[right[k]]
            for j in range(u.shape[0]):
                one, other = u[j], v[j]
                u[j] = c[k] * one + s[k] * other
                v[j] = c[k] * other - s[k] * one

    return step
