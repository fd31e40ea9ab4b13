"""Products summed over tokens: the second moments that balances and Hessians are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

ROWS = 512  # tokens a product on a CPU: their converted copy stays in its cache, up to twice as fast as 2,048
PANELS, NARROWEST = 8, 128  # of the symmetric product: 9/16 of its multiply-adds, and 0.57-0.65 of the time of all


@torch.no_grad()
def add_gram(total: Tensor, x: Tensor) -> None:
    """total += x^T x, (n, n) from tokens (T, n), products and their sums in float32.

    Only panels on and above the diagonal are multiplied, the others are their mirror image. Bfloat16 tokens are
    multiplied as such, or as TF32 on CUDA: the products are exact, and on a CPU with AMX they take a third of the time
    of float32 ones.

    Args:
        total: symmetric, float32 or float64.
        x: any float dtype.
    """
    n, width = len(total), max(NARROWEST, -(-len(total) // PANELS))
    panels = [slice(start, min(start + width, n)) for start in range(0, n, width)]
    with _float32(total) as target:
        with _low_precision(x.device) if x.dtype == torch.bfloat16 else nullcontext():
            for rows in _parts(x):
                for panel in panels:
                    target[panel, panel.start :].addmm_(rows[:, panel].T, rows[:, panel.start :])
        for panel in panels:
            target[panel.stop :, panel].copy_(target[panel, panel.stop :].T)


@torch.no_grad()
def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right, (n, m) from tokens (T, n) and (T, m); products and their sums in float32."""
    with _float32(total) as target:
        for a, b in zip(_parts(left), _parts(right), strict=True):
            target.addmm_(a.T, b)


def _parts(x: Tensor) -> Iterator[Tensor]:
    """Tokens in float32, so many at a time as a product takes."""
    return iter(x.float().split(ROWS if x.device.type == "cpu" else max(1, len(x))))


@contextmanager
def _float32(total: Tensor) -> Iterator[Tensor]:
    """A float32 sum to add to; what it holds at the end of the block is part of total."""
    if total.dtype == torch.float32:
        yield total
        return
    target = torch.zeros_like(total, dtype=torch.float32)
    yield target
    total.add_(target)


@contextmanager
def _low_precision(device: torch.device) -> Iterator[None]:
    """float32 products with bfloat16 or TF32 factors, inside the block; torch before 2.9 has float32 ones alone."""
    parts = {"cpu": (torch.backends.mkldnn, "bf16"), "cuda": (torch.backends.cuda, "tf32")}
    library, precision = parts.get(device.type, (None, ""))
    matmul: Any = getattr(library, "matmul", None)
    before = getattr(matmul, "fp32_precision", None)
    if before is None:
        yield
        return
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before
