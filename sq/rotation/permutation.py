"""A reordering of features."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.rotation.transform import Transform


class Permutation(Transform):
    """T with (x T)_j = x_{order[j]}: one gather and no arithmetic. order (n,) has each of 0 ... n - 1 once."""

    def __init__(self, order: Tensor) -> None:
        if order.dim() != 1 or order.is_floating_point():
            raise ValueError(f"Permutation got {order.dtype} of shape {tuple(order.shape)}; it needs integers (n,)")
        n = order.numel()
        if not torch.equal(order.sort().values, torch.arange(n, dtype=order.dtype, device=order.device)):
            raise ValueError(f"Permutation got an order that does not hold each of 0 to {n - 1} once")
        super().__init__(n, orthogonal=True)
        # Tensors made under inference_mode could not take part in training later.
        with torch.inference_mode(False):
            self.register_buffer("order", order.to(torch.int64, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        """x T."""
        return x.index_select(-1, self.get_buffer("order"))

    def inverse(self, x: Tensor) -> Tensor:
        """x T^T."""
        return x.index_select(-1, self.get_buffer("order").argsort())

    def macs(self) -> int:
        """Nothing is computed."""
        return 0
