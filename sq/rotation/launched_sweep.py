"""Jacobi sweeps of the fourth-moment rotation on a GPU: one Triton launch a step, for all pairs of all sets.

The form in torch (kurtosis.py) takes tens of launches a step; it is the reference, and takes over where Triton is
missing.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from sq.kernels.backend import Backend, picks_triton
from sq.kernels.fourth_moment import turn_pairs

log = logging.getLogger(__name__)


def launched_sweeps(rows: Tensor, sweeps: int, following: Tensor, backend: Backend = "auto") -> Tensor | None:
    """R^T (B, m, m), float64, from B sets of samples as channel rows (B, m, T); rows keep their values.

    Sums, angles and R are float64, samples are turned in float32. Nothing waits for the GPU.

    Args:
        rows: m >= 2.
        sweeps: times every pair is met.
        following: (size,), as for compiled_sweeps.
        backend: "triton" raises ValueError where the kernel cannot run; see sq/kernels/backend.py.

    Returns: None for what is not launched: other devices than CUDA, other dtypes than float32, Triton missing.
    """
    if rows.dtype != torch.float32 or not picks_triton(backend, rows, None):
        if rows.device.type != "cpu":
            _say_torch(str(rows.device.type), rows.dtype)
        return None
    batch, m, _ = rows.shape
    rows = rows.clone(memory_format=torch.contiguous_format)
    turned = torch.eye(m, dtype=torch.float64, device=rows.device).repeat(batch, 1, 1)
    steps = pairs_of_steps(m, following).to(rows.device)
    for _ in range(sweeps):
        for pairs in steps:
            turn_pairs(rows, turned, pairs, backend="triton")
    return turned


def pairs_of_steps(m: int, following: Tensor) -> Tensor:
    """The rows that meet in each step of a sweep, (size - 1, 2, m // 2), int32, by the schedule `following` (size,)."""
    size = len(following)
    half, pairs = size // 2, m // 2
    places = torch.arange(size) + m - size  # place 0 of an odd m has no row, -1: the pair that it is in is left out
    steps = []
    for _ in range(size - 1):
        steps.append(torch.stack([places[half - pairs : half], places[size - pairs :]]))
        places = places[following]
    return torch.stack(steps).to(torch.int32)


@cache
def _say_torch(device: str, dtype: torch.dtype) -> None:
    """Once for each: a launch a step needs float32 samples, CUDA and Triton."""
    log.info(
        "fourth-moment rotations of %s on %s run in torch, tens of launches a step: one launch a step takes float32 on "
        "CUDA, with Triton installed",
        str(dtype).removeprefix("torch."),
        device,
    )
