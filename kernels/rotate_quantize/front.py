"""What may stand in front of the rotation, in torch: a residual, RMSNorm or SwiGLU, then a low-rank balance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_tensor
from ..rms_norm import rms_norm
from ..steps import LowRankStep


class Norm(NamedTuple):
    """RMSNorm: x / sqrt(mean(x^2) + eps), then times the gain. Computed in float32, rounded to x's dtype after each."""

    eps: float  # at least 0
    gain: Tensor | None = None  # (n,), used in x's dtype; None where it is folded into what reads the norm


class Residual(NamedTuple):
    """x + what, rounded to x's dtype, takes the place of x and is written to `total`: the residual stream goes on."""

    what: Tensor  # x's shape and dtype
    total: Tensor  # likewise, contiguous; neither x nor `what`, since tuning runs a kernel repeatedly


class Front(NamedTuple):
    """Steps in front of the rotation: the residual, then the norm, or up alone; then the balance."""

    norm: Norm | None = None  # of x
    up: Tensor | None = None  # x's shape and dtype; the gate x becomes silu(x) up, rounded to x's dtype after each
    balance: LowRankStep | None = None  # its sums are float32, and the result is rounded to x's dtype once
    residual: Residual | None = None


def front_reference(x: Tensor, front: Front, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the rotation gets, (..., n): values of x's dtype, each step computed in `dtype`, which the result has."""

    def rounded(value: Tensor) -> Tensor:
        return value.to(x.dtype).to(dtype)

    norm, up, balance, residual = front
    if residual is not None:
        x = torch.add(x, residual.what, out=residual.total)
    if norm is not None:
        x = rms_norm(x, None if norm.gain is None else norm.gain.to(x.dtype), norm.eps, dtype)
    value = x.to(dtype)
    if up is not None:
        value = rounded(rounded(torch.nn.functional.silu(value)) * up.to(dtype))
    if balance is not None:
        if balance.diagonal is not None:
            value = value * rounded(balance.diagonal)
        value = rounded(value + (value @ rounded(balance.basis).T) @ rounded(balance.change))
    return value


def check_front(x: Tensor, front: Front) -> None:
    """Raise ValueError unless the front fits x (..., n)."""
    norm, up, balance, residual = front
    n = x.shape[-1]
    if residual is not None:
        if up is not None:
            raise ValueError("residual and up are both given; a SwiGLU reads no residual stream")
        check_tensor("residual.what", residual.what, x.shape, (x.dtype,), x.device)
        check_tensor("residual.total", residual.total, x.shape, (x.dtype,), x.device, contiguous=True)
        if residual.total.numel() and residual.total.data_ptr() in (x.data_ptr(), residual.what.data_ptr()):
            raise ValueError(
                "residual.total is x or residual.what; use another buffer: tuning runs a kernel repeatedly"
            )
    if norm is not None and up is not None:
        raise ValueError("norm and up are both given; a site has an RMSNorm or a SwiGLU in front, not both")
    if norm is not None and not norm.eps >= 0:
        raise ValueError(f"norm.eps is {norm.eps}; it must be at least 0")
    if up is not None and up.dtype != x.dtype:
        raise ValueError(f"up is {up.dtype} and the gate x is {x.dtype}; they must have one dtype")
    check_tensor("up", up, x.shape, None, x.device)
    if norm is not None:
        check_tensor("norm.gain", norm.gain, (n,), None, x.device)
    if balance is not None:
        rank = balance.basis.shape[0] if balance.basis.dim() == 2 else 0
        check_tensor("balance.diagonal", balance.diagonal, (n,), None, x.device)
        check_tensor("balance.basis", balance.basis, (rank, n), None, x.device)
        check_tensor("balance.change", balance.change, (rank, n), None, x.device)
