"""The online Hadamard transform x H / sqrt(n) of order n = K 2^m; derivation in README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import check_tensor
from ..backend import Backend, picks_triton
from .reference import hadamard_reference
from .tiles import tile_obstacle

__all__ = ["hadamard", "hadamard_reference"]


@torch.no_grad()
def hadamard(x: Tensor, base: Tensor, *, out: Tensor | None = None, backend: Backend = "auto") -> Tensor:
    """x (H_K (x) H_{2^m}) / sqrt(n) along the last axis, n = K 2^m; no gradient.

    Args:
        x: (..., n), floating point. A float16 token of entries up to a does not overflow while a sqrt(n) < 65504.
        base: H_K, (K, K), entries +-1, any floating dtype, on x's device; torch.ones(1, 1) for a power of two.
        out: written if given: shape, dtype and device of x, contiguous.
        backend: see sq/kernels/backend.py; the Triton kernel takes tokens that fit an SM (README.md, "Limits").

    Returns: (..., n) of x's dtype.

    Raises:
        ValueError: base is not square, K does not divide n, n / K is no power of two, out does not match x, or
            backend="triton" where the kernel cannot run.
    """
    _check(x, base, out)
    triton = picks_triton(backend, x, tile_obstacle(len(base), x.shape[-1] // len(base), x.element_size()))
    if x.numel() == 0:
        return torch.empty_like(x) if out is None else out
    if triton:
        from .triton import launch

        return launch(x, base, out)
    y = hadamard_reference(x, base)
    return y if out is None else out.copy_(y)


def _check(x: Tensor, base: Tensor, out: Tensor | None) -> None:
    if not x.is_floating_point():
        raise ValueError(f"hadamard got {x.dtype}; it transforms floating-point activations")
    if base.dim() != 2 or base.shape[0] != base.shape[1] or base.shape[0] == 0:
        raise ValueError(f"hadamard got a base of shape {tuple(base.shape)}; it needs a square H_K, (1, 1) for K = 1")
    if x.dim() == 0:
        raise ValueError("hadamard got a scalar; it transforms the last axis of (..., n)")
    k, n = base.shape[0], x.shape[-1]
    powers, rest = divmod(n, k)
    if rest or powers < 1 or powers & (powers - 1):
        raise ValueError(f"hadamard got {n} features and a base of order {k}; features must be {k} times a power of 2")
    check_tensor("base", base, (k, k), (base.dtype,), x.device)
    check_tensor("out", out, x.shape, (x.dtype,), x.device, contiguous=True)
