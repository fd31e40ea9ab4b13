"""Kronecker rotation, per-token 4-bit quantization and packing in one pass; derivation in README.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import check_choice, check_tensor, clip_factors
from ..backend import Backend, picks_triton
from ..coded import Coded
from ..schemes import Scheme
from ..steps import LowRankStep
from .front import Front, Norm, Residual, check_front
from .reference import Container, rotate_quantize_reference
from .takes import form_of, obstacle
from .tiles import tile_obstacle

# Entries the torch backend works on at a time; on a GPU the bound is on its temporaries.
_CPU_CHUNK, _GPU_CHUNK = 2**18, 2**25

__all__ = ["Container", "Norm", "Residual", "form_of", "obstacle", "rotate_quantize", "rotate_quantize_reference"]


@torch.no_grad()
def rotate_quantize(
    x: Tensor, r1: Tensor | None, r2: Tensor | None, *,
    scheme: Scheme = "symmetric", clip: float | Sequence[float] = 1.0, ends: tuple[float, float] = (1.0, 1.0),
    norm: Norm | None = None, up: Tensor | None = None, balance: LowRankStep | None = None,
    residual: Residual | None = None,
    container: Container = "int4", out: Coded | None = None, backend: Backend = "auto",
) -> Coded:  # fmt: skip
    """Quantize y = f(x) (R1 (x) R2) to 4 bits per token on the grids of kernels/grid.py; f: residual and norm, or up,
    then balance.

    Args:
        x: (..., n), floating point; rows of one stride are read in place.
        r1, r2: (n1, n1) and (n2, n2) with n1 n2 = n, used in x's dtype: pass them in it, or every call converts them.
            None is an identity; without both there is no rotation. Need not be orthogonal.
        clip: factor on the range in (0, 1], or candidates: each token takes the first of least squared error.
        ends: further factors in (0, 1] on the low and on the high end of the range.
        norm: RMSNorm in front.
        up: x's shape and dtype: SwiGLU in front, with x as the gate.
        balance: low-rank balance behind these; its tensors are used in x's dtype.
        residual: added to x in front of the norm, and where the sum is written; not beside up.
        container: of the codes, -8..7 or (asymmetric) 0..15. "int4": uint8 (..., ceil(n / 2)), code 2j in the low
            nibble of byte j, negative ones as two's complement; "int8": int8 (..., n), a code a byte; "int8_planes":
            int8 (..., 2, n / 2), the even features, then the odd ones.
        out: written and returned if given: contiguous, on x's device, of the shapes and dtypes below. With it, and
            after a first call that tunes, a CUDA graph can capture the call.
        backend: see sq/kernels/backend.py; the Triton kernel takes the factors of README.md, "Limits".

    Returns: codes in their container; scale float32 (..., 1), NaN where the rotated token contains NaN or inf, or its
    scale would be inf; zero integer-valued float32 (..., 1) for asymmetric, else None.

    Raises:
        ValueError: an unknown scheme, container or backend, a clip or end outside (0, 1], no candidates, factors or
            parts of the front that do not fit n or lie on another device, norm or residual
            beside up, int8_planes of an odd n, out
            that does not match, or backend="triton" where the kernel cannot run.
    """
    clips = clip_factors(clip)
    n1, n2 = _factor_sizes(x, r1, r2)
    front = Front(norm, up, balance, residual)
    check_front(x, front)
    _check(scheme, ends, container, x.shape[-1])
    triton = picks_triton(backend, x, tile_obstacle(n1, n2, r1 is not None, r2 is not None, x.element_size()))
    expected = _empty(x, scheme, container, x.device if out is None else "meta")
    result = expected if out is None else _checked_out(out, expected, x.device)
    if x.numel() == 0:
        return result
    if triton:
        from .triton import launch

        launch(x, front, r1, r2, (n1, n2), scheme, clips, ends, container, result)
    else:
        _in_chunks(x, r1, r2, scheme, clips, front, ends, container, result)
    return result


def _in_chunks(
    x: Tensor, r1: Tensor | None, r2: Tensor | None, scheme: Scheme, clips: Sequence[float], front: Front,
    ends: tuple[float, float], container: Container, result: Coded,
) -> None:  # fmt: skip
    """The torch backend, written to result: a few tokens at a time, so that what lies between its steps is cached."""
    n = x.shape[-1]
    rows, up, residual = x.reshape(-1, n), None if front.up is None else front.up.reshape(-1, n), front.residual
    what, total = (None, None) if residual is None else (part.reshape(-1, n) for part in residual)
    parts = (result.codes, result.scale, result.zero)
    targets = [None if whole is None else whole.view(len(rows), *whole.shape[x.dim() - 1 :]) for whole in parts]
    step = max(1, (_CPU_CHUNK if x.device.type == "cpu" else _GPU_CHUNK) // n)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        own = front._replace(up=None if up is None else up[part])
        if what is not None and total is not None:
            own = own._replace(residual=Residual(what[part], total[part]))
        values = rotate_quantize_reference(rows[part], r1, r2, scheme, clips, front=own, ends=ends, container=container)
        for target, value in zip(targets, values[:3], strict=True):
            if target is not None and value is not None:
                target[part] = value


def _factor_sizes(x: Tensor, r1: Tensor | None, r2: Tensor | None) -> tuple[int, int]:
    """(n1, n2); without factors (1, n)."""
    if not x.is_floating_point() or x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"rotate_quantize got x of {x.dtype} {tuple(x.shape)}; it takes floating-point (..., n), n > 0"
        )
    for name, factor in (("r1", r1), ("r2", r2)):
        if factor is not None:
            check_tensor(name, factor, 2 * factor.shape[:1] or (1, 1), None, x.device)
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


def _check(scheme: str, ends: tuple[float, float], container: str, n: int) -> None:
    check_choice("scheme", scheme, Scheme)
    check_choice("container", container, Container)
    if len(ends) != 2 or not all(0 < end <= 1 for end in ends):
        raise ValueError(f"ends is {ends}; use a pair of numbers in (0, 1], for the low and the high end of the range")
    if container == "int8_planes" and n % 2:
        raise ValueError(f"container int8_planes splits tokens into halves; {n} features are odd: use int8")


def _empty(x: Tensor, scheme: Scheme, container: Container, device: str | torch.device) -> Coded:
    row, n = x.shape[:-1], x.shape[-1]
    last = {"int4": ((n + 1) // 2,), "int8": (n,), "int8_planes": (2, n // 2)}[container]
    codes = torch.empty((*row, *last), dtype=torch.uint8 if container == "int4" else torch.int8, device=device)
    scale = torch.empty((*row, 1), dtype=torch.float32, device=device)
    return Coded(codes, scale, torch.empty_like(scale) if scheme == "asymmetric" else None)


def _checked_out(out: Coded, expected: Coded, device: torch.device) -> Coded:
    for name, got, want in zip(out._fields, out, expected, strict=True):
        if (got is None) != (want is None):
            raise ValueError(f"out.{name} must be {'None' if want is None else 'a tensor'} for this scheme")
        if want is not None:
            check_tensor(f"out.{name}", got, want.shape, (want.dtype,), device, contiguous=True)
    return out
