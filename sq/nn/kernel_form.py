"""Transforms in the form of the kernel kernels/rotate_quantize: a low-rank balance, then two Kronecker factors."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from sq.kernels.rotate_quantize import Balance
from sq.rotation.kronecker import Kronecker
from sq.rotation.low_rank import LowRank
from sq.rotation.transform import Compose, Identity, Transform

Form: TypeAlias = tuple[Tensor | None, Tensor | None, Balance | None]


def kernel_form(transform: Transform | None, x: Tensor) -> Form | None:
    """(r1, r2, balance) in the dtype of x, each None for an identity; None for a transform of another form."""
    parts = list(transform.transforms) if isinstance(transform, Compose) else [transform]
    parts = [part for part in parts if part is not None and not isinstance(part, Identity)]
    balance = None
    if parts and isinstance(parts[0], LowRank):
        balance = Balance(*parts[0].cast_factors(x))
        parts = parts[1:]
    if not parts:
        return None, None, balance
    if len(parts) == 1 and isinstance(parts[0], Kronecker):
        return *parts[0].cast_factors(x), balance
    return None
