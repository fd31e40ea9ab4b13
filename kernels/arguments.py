"""Checks of arguments that several operations take. Each raises ValueError with what it got and what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor


def clip_factors(clip: float | Sequence[float]) -> tuple[float, ...]:
    """One factor on a range, or candidates, as a tuple: at least one, each in (0, 1]."""
    clips = (float(clip),) if isinstance(clip, (int, float)) else tuple(float(c) for c in clip)
    if not clips or not all(0 < c <= 1 for c in clips):
        raise ValueError(f"clip is {list(clips)}; use a number in (0, 1] or a non-empty list of them")
    return clips


def check_choice(name: str, value: str, choices: Any) -> None:
    """The value is one of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(get_args(choices))}")


def check_tensor(
    name: str,
    tensor: Tensor | None,
    shape: Sequence[int],
    dtypes: tuple[torch.dtype, ...] | None,
    device: torch.device,
    *,
    of: str = "x",
    contiguous: bool = False,
) -> None:
    """The tensor, if there is one, has this shape, one of these dtypes (None: any floating one) and this device.

    Args:
        of: whose device it is.
        contiguous: it must be.
    """
    if tensor is None:
        return
    right = tensor.is_floating_point() if dtypes is None else tensor.dtype in dtypes
    if tuple(tensor.shape) != tuple(shape) or not right or (contiguous and not tensor.is_contiguous()):
        got = f"{tensor.dtype} {tuple(tensor.shape)}"
        want = f"{'floating-point' if dtypes is None else ' or '.join(map(str, dtypes))} {tuple(shape)}"
        if contiguous:
            got, want = f"{got}, contiguous: {tensor.is_contiguous()}", f"{want} and contiguous"
        raise ValueError(f"{name} is {got}; it must be {want}")
    if tensor.device != device:
        raise ValueError(f"{of} is on {device} and {name} on {tensor.device}; move {name} to {of}'s device once")
