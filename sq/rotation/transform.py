"""The interface of every invertible transform T of a site's features, and the trivial ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Transform(nn.Module):
    """An invertible T acting on the last axis of x, shape (..., n).

    The invariant every subclass keeps: forward(x) @ inverse_transpose(w).T == x @ w.T for weights w of shape (d_out, n).
    Factors are built in float64, held as float32 buffers and applied in the dtype of x.

    Attributes:
        n: number of features.
        orthogonal: whether T^-1 = T^T.
    """

    n: int
    orthogonal: bool = True

    def forward(self, x: Tensor) -> Tensor:
        """x T, shape (..., n), dtype of x."""
        raise NotImplementedError

    def inverse(self, x: Tensor) -> Tensor:
        """x T^-1, shape (..., n), dtype of x."""
        raise NotImplementedError

    def inverse_transpose(self, w: Tensor) -> Tensor:
        """w T^-T, the weight side of the transform, shape (d_out, n), dtype of w."""
        if self.orthogonal:
            return self(w)  # type: ignore[no-any-return]
        raise NotImplementedError

    def multiply_adds(self) -> int:
        """Multiply-adds per token when T is applied online."""
        raise NotImplementedError

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Dense T, shape (n, n): row i is e_i T."""
        return self(torch.eye(self.n, dtype=dtype))  # type: ignore[no-any-return]


class Identity(Transform):
    """T = I."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def inverse(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def multiply_adds(self) -> int:
        """Nothing is computed."""
        return 0
