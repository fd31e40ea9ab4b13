"""Checks of arguments that several operations take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_factors(clip: float | Sequence[float]) -> tuple[float, ...]:
    """One factor on a range, or candidates, as a tuple. Raises ValueError where there is none or one outside (0, 1]."""
    clips = (float(clip),) if isinstance(clip, (int, float)) else tuple(float(c) for c in clip)
    if not clips or not all(0 < c <= 1 for c in clips):
        raise ValueError(f"clip is {list(clips)}; use a number in (0, 1] or a non-empty list of them")
    return clips


def check_out(name: str, out: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError unless a caller's output is contiguous and of this shape, dtype and device."""
    if (tuple(out.shape), out.dtype, out.device) != (tuple(shape), dtype, device) or not out.is_contiguous():
        raise ValueError(
            f"{name} is {out.dtype} {tuple(out.shape)} on {out.device}, contiguous: {out.is_contiguous()}; "
            f"it must be {dtype} {tuple(shape)} on {device} and contiguous"
        )
