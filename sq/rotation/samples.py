"""Calibration samples in the layout that rotations are built on: one contiguous row a channel."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.errors import CalibrationError


def channel_rows(x: Tensor) -> Tensor:
    """A copy of x (T, m) as (m, T), contiguous, float64 for float64 x and float32 otherwise.

    Raises:
        CalibrationError: no tokens, or NaN or inf among them.
    """
    check_samples(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.detach().T.to(dtype, copy=True).contiguous()


def check_samples(x: Tensor, name: str = "the calibration activations") -> None:
    """Raise CalibrationError unless x is (T, m) with T, m >= 1 and every entry finite."""
    if x.dim() != 2 or x.numel() == 0:
        raise CalibrationError(f"{name} have shape {tuple(x.shape)}; a rotation needs (T, n) with at least one token")
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
