"""Calibration samples in the layout that rotations are built on: one contiguous row a channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sq.errors import CalibrationError

ENTRIES_PER_THREAD = 2**22


def channel_rows(x: Tensor) -> Tensor:
    """A checked copy of x (T, m) as (m, T), contiguous, float64 for float64 x, else float32: see check_samples."""
    check_samples(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.detach().T.to(dtype, copy=True, memory_format=torch.contiguous_format)


def check_samples(x: Tensor, name: str = "the calibration activations") -> None:
    """Raise CalibrationError unless x is (T, m) with T, m >= 1 and every entry finite."""
    if x.dim() != 2 or x.numel() == 0:
        raise CalibrationError(f"{name} have shape {tuple(x.shape)}; a rotation needs (T, n) with at least one token")
    total = x.sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    if bool(torch.isfinite(total)):  # NaN and inf survive a sum; one pass instead of five
        return
    bad = ~torch.isfinite(x).all(-1)
    if bool(bad.any()):
        raise CalibrationError(
            f"{name} carry NaN or inf in {int(bad.sum())} of {x.shape[0]} tokens, first in {int(bad.nonzero()[0])}; "
            "check the checkpoint's weights, or run the capture in bfloat16 or float32 instead of float16"
        )


def token_rms(x: Tensor) -> Tensor:
    """Root mean square of each token of x (T, n), shape (T, 1); 1 for a token of zeros, to divide by."""
    rms = x.square().mean(-1, keepdim=True).sqrt()
    return torch.where(rms > 0, rms, torch.ones_like(rms))


@contextmanager
def fitting_threads(entries: int) -> Iterator[None]:
    """Run a loop of small CPU operations over so many entries on one thread per ENTRIES_PER_THREAD of them.

    Threads meet every few microseconds: beside another job, two threads on two cores took 73 s where one took 10 s.
    """
    allowed = torch.get_num_threads()
    torch.set_num_threads(max(1, min(allowed, entries // ENTRIES_PER_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(allowed)
