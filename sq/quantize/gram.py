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
    """total += x^T x, (n, n) from tokens (T, n), in float32 with the entries of x rounded to bfloat16 (CUDA: TF32).

    The sum is the exact Gram matrix of tokens that differ by at most 2^-9 in each entry, positive semidefinite, and of
    the tokens themselves where they are bfloat16; three times as fast as float32 throughout on a CPU with AMX. Float64
    tokens are multiplied in float32, as all are on CPUs without bfloat16 products and with torch before 2.9.
    """
    with nullcontext() if x.dtype == torch.float64 else _low_precision(x.device):
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
    """float32 products with bfloat16 or TF32 factors, inside the block."""
    parts = {"cpu": (torch.backends.mkldnn, "bf16"), "cuda": (torch.backends.cuda, "tf32")}
    library, precision = parts.get(device.type, (None, ""))
    matmul: Any = getattr(library, "matmul", None)
    before = getattr(matmul, "fp32_precision", None)
    if before is None:  # torch before 2.9, and other devices: float32
        yield
        return
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before
