"""Kronecker rotation, per-token 4-bit quantization and packing in one pass; derivation in README.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from ..backend import Backend, picks_triton
from .reference import Scheme, rotate_quantize_reference
from .tiles import tile_obstacle

__all__ = ["PackedActivations", "rotate_quantize", "rotate_quantize_reference"]


class PackedActivations(NamedTuple):
    """4-bit activations of T tokens.

    Attributes:
        codes: uint8 (..., ceil(n / 2)): code 2j in the low nibble of byte j, 2j + 1 in the high one; two's complement
            for symmetric and midrise, unsigned for asymmetric.
        scale: float32 (..., 1); NaN where the rotated token holds NaN or inf, or its scale would be inf.
        zero: integer-valued float32 (..., 1) for asymmetric, else None.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


@torch.no_grad()
def rotate_quantize(
    x: Tensor,
    r1: Tensor | None,
    r2: Tensor | None,
    *,
    scheme: Scheme = "symmetric",
    clip: float | Sequence[float] = 1.0,
    out: PackedActivations | None = None,
    backend: Backend = "auto",
) -> PackedActivations:
    """Quantize y = x (R1 (x) R2), that is Y = R1^T X R2 for a token viewed as X (n1, n2), to 4 bits per token.

    Value of a code q: q s (symmetric), (q - z) s (asymmetric), (2q + 1) s / 2 (midrise). Grids and rounding are those
    of sq/quant/grid.py at 4 bits, from float32 sums that are not rounded to x's dtype first.

    Args:
        x: (..., n), floating point; rows of one stride are read in place.
        r1, r2: (n1, n1) and (n2, n2) with n1 n2 = n, used in x's dtype: pass them in it, or every call converts them.
            None is an identity. Need not be orthogonal.
        clip: factor on the range in (0, 1], or candidates of which each token takes the one of least squared error
            (the first of equal ones).
        out: written and returned if given: contiguous, on x's device, shapes and dtypes as above. With it, and after a
            first call that tunes, a CUDA graph can capture the call.
        backend: "auto" | "torch" | "triton", see sq/kernels/backend.py. The Triton kernel takes an even n2 and factors
            of up to 256 that fit an SM together with a token; "auto" takes torch for others.

    Raises:
        ValueError: an unknown scheme or backend, a clip outside (0, 1], no candidates, factors that do not fit n or lie
            on another device, out that does not match, or backend="triton" where the kernel cannot run.
    """
    clips = (float(clip),) if isinstance(clip, (int, float)) else tuple(float(c) for c in clip)
    n1, n2 = _factor_sizes(x, r1, r2)
    _check(scheme, clips)
    obstacle = tile_obstacle(n1, n2, r1 is not None, r2 is not None, x.element_size())
    triton = picks_triton(backend, x, obstacle)
    result = _empty(x, scheme) if out is None else _checked_out(out, _empty(x, scheme, "meta"), x.device)
    if x.numel() == 0:
        return result
    if triton:
        from .triton import launch

        launch(x, r1, r2, (n1, n2), scheme, clips, *result)
    else:
        for target, value in zip(result, rotate_quantize_reference(x, r1, r2, scheme, clips), strict=True):
            if target is not None and value is not None:
                target.copy_(value)
    return result


def _factor_sizes(x: Tensor, r1: Tensor | None, r2: Tensor | None) -> tuple[int, int]:
    """(n1, n2); without factors (1, n)."""
    if not x.is_floating_point() or x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"rotate_quantize got x of {x.dtype} {tuple(x.shape)}; it takes floating-point (..., n), n > 0"
        )
    for name, factor in (("r1", r1), ("r2", r2)):
        if factor is None:
            continue
        if factor.dim() != 2 or factor.shape[0] != factor.shape[1] or not factor.is_floating_point():
            raise ValueError(
                f"{name} is {factor.dtype} {tuple(factor.shape)}; it must be a square floating-point matrix"
            )
        if factor.device != x.device:
            raise ValueError(f"x is on {x.device} and {name} on {factor.device}; move {name} to x's device once")
    n = x.shape[-1]
    known = (r1.shape[0] if r1 is not None else 1) * (r2.shape[0] if r2 is not None else 1)
    both = r1 is not None and r2 is not None
    if known == 0 or n % known or (both and n != known):
        sizes = " and ".join(f"{f.shape[0]}" for f in (r1, r2) if f is not None)
        raise ValueError(
            f"factors of size {sizes} do not fit {n} features; n1 n2 must be {n} "
            "(None stands for an identity of the size that is left)"
        )
    if r2 is not None:
        return n // r2.shape[0], r2.shape[0]
    return (r1.shape[0], n // r1.shape[0]) if r1 is not None else (1, n)


def _check(scheme: str, clips: Sequence[float]) -> None:
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme is {scheme!r}; use one of {', '.join(get_args(Scheme))}")
    if not clips or not all(0 < c <= 1 for c in clips):
        raise ValueError(f"clip is {list(clips)}; use a number in (0, 1] or a non-empty list of them")


def _empty(x: Tensor, scheme: Scheme, device: str | torch.device | None = None) -> PackedActivations:
    device = x.device if device is None else device
    row = x.shape[:-1]
    codes = torch.empty((*row, (x.shape[-1] + 1) // 2), dtype=torch.uint8, device=device)
    scale = torch.empty((*row, 1), dtype=torch.float32, device=device)
    return PackedActivations(codes, scale, torch.empty_like(scale) if scheme == "asymmetric" else None)


def _checked_out(out: PackedActivations, expected: PackedActivations, device: torch.device) -> PackedActivations:
    for name, got, want in zip(out._fields, out, expected, strict=True):
        if got is None and want is None:
            continue
        if got is None or want is None:
            raise ValueError(f"out.{name} must be {'None' if want is None else 'a tensor'} for this scheme")
        if (got.shape, got.dtype, got.device) != (want.shape, want.dtype, device) or not got.is_contiguous():
            raise ValueError(
                f"out.{name} is {got.dtype} {tuple(got.shape)} on {got.device}, contiguous: {got.is_contiguous()}; "
                f"it must be {want.dtype} {tuple(want.shape)} on {device} and contiguous"
            )
    return out
