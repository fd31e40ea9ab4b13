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
    """R^T (B, m, m), float64, from B sets of samples as channel rows (B, m, T); rows keep their values.

    Sums of a slice are float32, in any order; sums over slices, angles and R are float64. A set gets what it gets
    alone, bit for bit.

    Args:
        rows: m >= 2.
        sweeps: times every pair is met.
        following: (size,), the place each row comes from after a step; size is m, or m + 1 for odd m, where place 0
            has no row. The rows at places k and size / 2 + k meet.

    Returns: None for what is not compiled: other devices than the CPU, other dtypes than float32, numba missing.
    """
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or (step := _compiled()) is None:
        return None
    import numpy as np

    batch, m, tokens = rows.shape
    size, threads = len(following), torch.get_num_threads()
    # Threads share the slices of a set as if it were alone, which fixes the order of its sums, then the sets.
    parts = max(1, min(threads, m * tokens // ENTRIES_PER_THREAD))
    groups = max(1, min(threads // parts, batch, rows.numel() // ENTRIES_PER_THREAD))
    turned = torch.eye(m, dtype=torch.float64).repeat(batch, 1, 1)
    slices = _shares(_slices(rows), groups, 1, parts)
    columns = _shares(turned, groups, 2, parts)
    # Loops are compiled for arrays without gaps.
    arrays = [[share.contiguous().numpy() for share in shares] for shares in (slices, columns)]
    known, sums = np.zeros((2, parts, batch, 3, m // 2))  # sums of zero: the first step turns by nothing
    after = following.numpy()
    places = np.argsort(after) + m - size  # the first step's pairs are those that follow
    first = [int(group[0]) for group in torch.arange(batch).tensor_split(groups) for _ in range(parts)]
    own = [*range(parts)] * groups
    with ThreadPoolExecutor(len(own)) if len(own) > 1 else nullcontext() as pool:
        each = map if pool is None else pool.map
        for _ in range(sweeps * (size - 1)):
            for _ in each(step, *arrays, repeat(places), repeat(after), repeat(known), repeat(sums), first, own):
                pass
            known, sums, places = sums, known, places[after]
    for share, done, part, i, k in zip(columns, arrays[1], arrays[0], first, own, strict=True):
        step(part[:, :0], done, places, after, known, sums, i, k)
        share.copy_(torch.from_numpy(done))
    return turned


def _shares(x: Tensor, groups: int, dim: int, parts: int) -> list[Tensor]:
    """x cut into groups along its first axis, each of them into parts along `dim`: views, group by group."""
    return [part for group in x.tensor_split(groups) for part in group.tensor_split(parts, dim=dim)]


def _slices(rows: Tensor) -> Tensor:
    """Rows (B, m, T) as slices (B, S, m, W), contiguous; the last is filled up with zeros, which add nothing."""
    batch, m, tokens = rows.shape
    count = -(-tokens // WIDTH)
    width = -(-tokens // count)
    slices, whole = rows.new_zeros(batch, count, m, width), tokens // width
    slices[:, :whole] = rows[..., : whole * width].unflatten(2, (whole, width)).transpose(1, 2)
    slices[:, whole:, :, : tokens - whole * width] = rows[:, None, :, whole * width :]
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
    def step(slices, columns, places, after, known, sums, start, thread):  # type: ignore[no-untyped-def]
        """Turn the pairs at `places` by the angles of `known`, then sum A, 2 B and 4 C of the pairs that meet next.

        slices (B, S, m, W) and columns (B, m, columns of R) of the sets from `start` on, of which this is one thread's
        share; known and sums (threads, all sets, 3, pairs), of which sums[thread] is written.
        """
        half, pairs = len(places) // 2, sums.shape[3]
        left, right = places[half - pairs : half], places[len(places) - pairs :]
        order = places[after]
        next_left, next_right = order[half - pairs : half], order[len(places) - pairs :]
        c, s = np.empty(pairs), np.empty(pairs)
        for b in range(len(slices)):
            for k in range(pairs):
                sum_a, sum_b, sum_c = 0.0, 0.0, 0.0
                for i in range(len(known)):
                    sum_a += known[i, start + b, 0, k]
                    sum_b += known[i, start + b, 1, k]
                    sum_c += known[i, start + b, 2, k]
                theta = np.arctan2(sum_b, sum_a - sum_c / 4) / 4
                c[k], s[k] = np.cos(theta), np.sin(theta)
            total = sums[thread, start + b]
            total[:] = 0
            for i in range(slices.shape[1]):  # an iterator would give parts of unknown strides: not vectorized
                part = slices[b, i]
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
                        of_slice_a, of_slice_b, of_slice_c = np.float32(0), np.float32(0), np.float32(0)
                        for t in range(x.shape[0]):
                            first, second = x[t], y[t]
                            p, q = first * second, second * second - first * first
                            of_slice_a += p * p
                            of_slice_b += p * q
                            of_slice_c += q * q
                        total[0, k - 1] += of_slice_a
                        total[1, k - 1] += of_slice_b
                        total[2, k - 1] += of_slice_c
            for k in range(pairs):
                u, v = columns[b, left[k]], columns[b, right[k]]
                for j in range(u.shape[0]):
                    one, other = u[j], v[j]
                    u[j] = c[k] * one + s[k] * other
                    v[j] = c[k] * other - s[k] * one

    return step
