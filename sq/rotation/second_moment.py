"""Second moments (n, n) as what balances read of them: products with a few vectors, and blocks on the diagonal.

At the width of a 70B model's `down`, n = 28,672, the matrix W^T W takes 13 teraflops and, in float64, 6.6 GB; a balance
of blocks and of a few directions reads a hundredth of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from sq.finite import finite
from sq.rotation.low_rank import LowRank

ROWS = 4096  # of a matrix that are converted at once


class SecondMoment(ABC):
    """A symmetric positive semidefinite matrix (n, n).

    Attributes:
        n: its size.
        device: where it lies.
        entries: numbers that a product with it reads.
    """

    n: int
    device: torch.device
    entries: int

    @abstractmethod
    def times(self, v: Tensor) -> Tensor:
        """The product with v (n, k), float32 or float64, in its dtype."""

    @abstractmethod
    def blocks(self, size: int) -> Tensor:
        """Blocks on the diagonal, float64, shape (n / size, size, size); size divides n."""

    @abstractmethod
    def dense(self) -> Tensor:
        """All of it, float64."""

    @abstractmethod
    def is_finite(self) -> Tensor:
        """Whether what it is made of holds neither NaN nor inf, a bool tensor ()."""

    def mean(self) -> Tensor:
        """Of the diagonal, float64, shape ()."""
        return self.blocks(1).mean()


class OfMatrix(SecondMoment):
    """Given as a matrix (n, n); ValueError for another shape."""

    def __init__(self, matrix: Tensor, name: str = "given") -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"the {name} second moment has shape {tuple(matrix.shape)}; it must be (n, n)")
        self.n, self.device, self._matrix = len(matrix), matrix.device, matrix.detach()
        self.entries = matrix.numel()

    def times(self, v: Tensor) -> Tensor:
        """Rows are converted a few at a time."""
        return torch.cat([rows.to(v.dtype) @ v for rows in self._matrix.split(ROWS)])

    def blocks(self, size: int) -> Tensor:
        """See `SecondMoment`."""
        by_block = self._matrix.unflatten(0, (-1, size)).unflatten(2, (-1, size))  # (b, size, b, size)
        found: Tensor = by_block.diagonal(dim1=0, dim2=2).permute(2, 0, 1).to(torch.float64)
        return found

    def dense(self) -> Tensor:
        """See `SecondMoment`."""
        return self._matrix.to(torch.float64)

    def is_finite(self) -> Tensor:
        """Of the matrix."""
        return finite(self._matrix)


class OfRows(SecondMoment):
    """X^T X / T of tokens or weights X (T, n), at least float32; made as a whole only where `dense` asks."""

    def __init__(self, rows: Tensor) -> None:
        self.n, self.device, self._rows = rows.shape[1], rows.device, rows.detach()
        self.entries = rows.numel()

    def times(self, v: Tensor) -> Tensor:
        """X^T (X v) / T, multiplied in X's dtype, whatever that of v."""
        # X is read along its rows both times: BLAS takes twice as long over X^T times a few columns.
        found = ((self._rows @ v.to(self._rows.dtype)).T @ self._rows).T
        return found.div_(len(self._rows)).to(v.dtype)

    def blocks(self, size: int) -> Tensor:
        """See `SecondMoment`; products are in X's dtype."""
        if size == 1:
            return self._diagonal[:, None, None]
        made = [part.T @ part for part in self._rows.split(size, dim=1)]
        return torch.stack(made).to(torch.float64) / len(self._rows)

    def dense(self) -> Tensor:
        """Multiplied in X's dtype."""
        return (self._rows.T @ self._rows / len(self._rows)).to(torch.float64)

    def is_finite(self) -> Tensor:
        """Of X, read off its squares' sums; inf too where they overflow."""
        return torch.isfinite(self._diagonal).all()

    @cached_property
    def _diagonal(self) -> Tensor:
        return self._rows.square().sum(0).to(torch.float64) / len(self._rows)


class Normalized(SecondMoment):
    """Another one with mean diagonal 1, and then `damping` added to the diagonal.

    Args:
        base: the other.
        mean: of its diagonal.
        damping: 0 or more.
    """

    def __init__(self, base: SecondMoment, mean: Tensor, damping: float) -> None:
        self.n, self.device, self.entries = base.n, base.device, base.entries
        self._base, self._mean, self._damping = base, mean, damping

    def times(self, v: Tensor) -> Tensor:
        """See `SecondMoment`."""
        return self._base.times(v).div_(self._mean.to(v.dtype)).add_(v, alpha=self._damping)

    def blocks(self, size: int) -> Tensor:
        """See `SecondMoment`."""
        return self._damped(self._base.blocks(size))

    def dense(self) -> Tensor:
        """See `SecondMoment`."""
        return self._damped(self._base.dense())

    def is_finite(self) -> Tensor:
        """Of the other."""
        return self._base.is_finite()

    def _damped(self, x: Tensor) -> Tensor:
        x = x / self._mean
        x.diagonal(dim1=-2, dim2=-1).add_(self._damping)
        return x


class Stretched(SecondMoment):
    """L^T C L behind a low-rank balance L = I + U V, or L^-1 C L^-T for weights: C with a few rows and columns added.

    With K = C U: C + V^T K^T + K V + V^T (U^T K) V.

    Args:
        base: C.
        transform: L, without a diagonal.
        of_weights: take the inverse transpose.
    """

    def __init__(self, base: SecondMoment, transform: LowRank, *, of_weights: bool = False) -> None:
        self.n, self.device, self.entries, self._base = base.n, base.device, base.entries, base
        self._u = transform.directions()
        self._v = transform.change_of(inverse_transpose=of_weights)
        self._k = base.times(self._u)
        self._inner = self._u.T @ self._k

    def times(self, v: Tensor) -> Tensor:
        """See `SecondMoment`."""
        left, right = self._u.to(v.dtype), self._v.to(v.dtype)
        product = self._base.times(v + left @ (right @ v))
        return product + right.T @ (left.T @ product)

    def blocks(self, size: int) -> Tensor:
        """See `SecondMoment`."""
        k = self._k.unflatten(0, (-1, size))  # (b, size, r)
        v = self._v.T.unflatten(0, (-1, size))
        mixed = v @ k.mT
        found: Tensor = self._base.blocks(size) + mixed + mixed.mT + v @ self._inner @ v.mT
        return found

    def dense(self) -> Tensor:
        """See `SecondMoment`."""
        mixed = self._v.T @ self._k.T
        return self._base.dense() + mixed + mixed.T + self._v.T @ self._inner @ self._v

    def is_finite(self) -> Tensor:
        """Of C and of what was added."""
        return self._base.is_finite() & finite(self._k)


def as_moment(moment: Tensor | SecondMoment, name: str = "given") -> SecondMoment:
    """A matrix as a SecondMoment; ValueError, which has the name, for one that is not square."""
    return moment if isinstance(moment, SecondMoment) else OfMatrix(moment, name)
