"""Products summed over tokens: the second moments that balances and Hessians are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

ROWS = 512  # tokens a product on a CPU: their converted copy stays in its cache, up to twice as fast as 2,048


@torch.no_grad()
def add_gram(total: Tensor, x: Tensor) -> None:
    """total += x^T x, (n, n) from tokens (T, n), products and their sums in float32.

    Bfloat16 tokens are multiplied as such, or as TF32 on CUDA: the products are exact, and on a CPU with AMX they take
    a third of the time of float32 ones.
    """
    with _low_precision(x.device) if x.dtype == torch.bfloat16 else nullcontext():
        add_product(total, x, x)


@torch.no_grad()
def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right, (n, m) from tokens (T, n) and (T, m); products and their sums in float32."""
    target = total if total.dtype == torch.float32 else torch.zeros_like(total, dtype=torch.float32)
    step = ROWS if left.device.type == "cpu" else max(1, len(left))
    left, right = left.float(), right.float()
    for start in range(0, len(left), step):
        part = slice(start, start + step)
        target.addmm_(left[part].T, right[part])
    if target is not total:
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
