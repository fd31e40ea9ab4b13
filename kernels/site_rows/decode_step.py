"""A site and its linears for a few tokens on a CPU: y = quantize(f(x) T) W^T + bias in one compiled call."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..int4_matmul.cpu_weight import CpuWeight
from ..schemes import Scheme
from . import FEW_TOKENS, SiteRows


class DecodeStep:
    """`SiteRows.codes`, then `CpuWeight.product`, of at most FEW_TOKENS tokens: the same bits on one thread.

    One call of 3 us in the place of two of 20 us and what they allocate; a decode step of 30 layers has 120.

    Args:
        rows, weight: of one site; their scheme of codes.
    """

    def __init__(self, rows: SiteRows, weight: CpuWeight, scheme: Scheme) -> None:
        self.n, self.d_out, self._kept = rows.n, weight.d_out, (rows, weight)
        self._small = not weight.splits
        numbers, eps, grid = rows.constants()
        own, level = weight.constants()
        of_rows = -0.5 if scheme == "midrise" else 0.0
        self._numbers = np.array([*numbers, *own], np.int64)
        self._factors = np.array([eps, *grid, level, of_rows], np.float64)
        self._at = self._numbers.ctypes.data, self._factors.ctypes.data

    def takes(self, x: Tensor, up: Tensor | None) -> bool:
        """Whether these activations (..., n) are such as `product` computes."""
        return (
            x.dtype == torch.bfloat16
            and x.numel() <= FEW_TOKENS * self.n
            and x.is_contiguous()
            and (up is None or (up.dtype == torch.bfloat16 and up.is_contiguous()))
            and (self._small or torch.get_num_threads() == 1)
        )

    def product(self, x: Tensor, up: Tensor | None) -> Tensor:
        """(..., d_out), bfloat16, of x and up (..., n)."""
        from .numba_decode import decode

        y = x.new_empty((*x.shape[:-1], self.d_out))
        n, gates = self.n, 0 if up is None else up.data_ptr()
        decode(x.numel() // n, x.data_ptr(), n, gates, n, y.data_ptr(), True, *self._at)
        return y
