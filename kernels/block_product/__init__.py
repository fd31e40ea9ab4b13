"""A block of its own for each row of a token, then one factor across the rows; derivation in README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import check_tensor
from ..backend import Backend, picks_triton
from .reference import LowRank, block_product_reference
from .takes import form_of
from .tiles import tile_obstacle

__all__ = ["LowRank", "block_product", "block_product_reference", "form_of"]

# Entries the torch backend works on at a time; on a GPU the bound is on its temporaries.
_CPU_CHUNK, _GPU_CHUNK = 2**20, 2**26


@torch.no_grad()
def block_product(
    x: Tensor, blocks: Tensor, first: Tensor | None = None, low_rank: LowRank | None = None, *,
    out: Tensor | None = None, backend: Backend = "auto",
) -> Tensor:  # fmt: skip
    """z = R1^T [x'_i B_i]_i of x' = x + (x U) V^T, for a token viewed as n1 rows x_i of n2 features; no gradient.

    Args:
        x: (..., n), floating point, n = n1 n2; rows of one stride are read in place.
        blocks: B, (n1, n2, n2). It, first and low_rank are used in x's dtype: pass them in it, or every call converts
            them. None need be orthogonal.
        first: R1, (n1, n1); None is an identity.
        low_rank: (U, V), (n, r) each, in any layout; None, or r = 0, leaves x as it is.
        out: written and returned if given: shape, dtype and device of x, contiguous, memory that no operand uses.
        backend: see sq/kernels/backend.py; the Triton kernel takes the sizes of README.md, "Limits".

    Returns: (..., n) of x's dtype, of sums in float32 (float64 for float64).

    Raises:
        ValueError: sizes that do not fit each other, tensors on another device or not of floating point, out that does
            not match x or is x, or backend="triton" where the kernel cannot run.
    """
    _check(x, blocks, first, low_rank, out)
    n1, n2 = blocks.shape[:2]
    low_rank = low_rank if low_rank is not None and low_rank[0].shape[1] else None
    rank = 0 if low_rank is None else low_rank[0].shape[1]
    triton = picks_triton(backend, x, tile_obstacle(n1, n2, first is not None, rank, x.element_size()))
    z = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if x.numel() == 0:
        return z
    blocks = blocks.to(x.dtype)
    first = None if first is None else first.to(x.dtype)
    low_rank = None if low_rank is None else (low_rank[0].to(x.dtype), low_rank[1].to(x.dtype))
    if triton:
        from .triton import launch

        launch(x, blocks, first, low_rank, z)
    else:
        _in_chunks(x, blocks, first, low_rank, z)
    return z


def _in_chunks(x: Tensor, blocks: Tensor, first: Tensor | None, low_rank: LowRank | None, z: Tensor) -> None:
    """The torch backend, written to z: a few tokens at a time, so that what lies between its steps is cached."""
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    blocks, first = blocks.to(work), None if first is None else first.to(work)  # once, not in every chunk
    low_rank = None if low_rank is None else (low_rank[0].to(work), low_rank[1].to(work))
    n = x.shape[-1]
    rows, target = x.reshape(-1, n), z.view(-1, n)
    step = max(1, (_CPU_CHUNK if x.device.type == "cpu" else _GPU_CHUNK) // n)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        target[part] = block_product_reference(rows[part], blocks, first, low_rank, work)


def _check(x: Tensor, blocks: Tensor, first: Tensor | None, low_rank: LowRank | None, out: Tensor | None) -> None:
    if not x.is_floating_point() or x.dim() == 0:
        raise ValueError(f"block_product got x of {x.dtype} {tuple(x.shape)}; it takes floating-point (..., n)")
    n = x.shape[-1]
    if blocks.dim() != 3 or blocks.shape[1] != blocks.shape[2] or blocks.shape[0] * blocks.shape[1] != n or n == 0:
        raise ValueError(
            f"block_product got blocks {tuple(blocks.shape)} for {n} features; they must be (n1, n2, n2) with n1 n2 = n"
        )
    n1 = len(blocks)
    check_tensor("blocks", blocks, blocks.shape, None, x.device)
    check_tensor("first", first, (n1, n1), None, x.device)
    if low_rank is not None:
        if len(low_rank) != 2 or low_rank[0].dim() != 2:
            raise ValueError("low_rank must be a pair (U, V) of tensors (n, r), or None")
        for name, side in zip(("U of low_rank", "V of low_rank"), low_rank, strict=True):
            check_tensor(name, side, (n, low_rank[0].shape[1]), None, x.device)
    check_tensor("out", out, x.shape, (x.dtype,), x.device, contiguous=True)
    if out is not None and out.numel() and out.data_ptr() == x.data_ptr():
        raise ValueError("out is x, which is read until the end; give it memory of its own")
