"""Kronecker transforms T = R1 (x) R2, n = n1 n2: two small products in the place of one large one."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor

from sq.kernels.steps import KroneckerStep
from sq.rotation.transform import MatrixTransform


def kronecker_factors(n: int, admits: Callable[[int], bool] = lambda _: True) -> tuple[int, int]:
    """The pair (n1, n2), n1 <= n2 and n1 n2 = n, closest to sqrt(n): it makes the online cost n (n1 + n2) least.

    Args:
        admits: which factors may be used, such as has_hadamard (11008 is then 64 x 172 and not 86 x 128).

    ValueError is raised where n has no such pair with both factors above 1.
    """
    divisors = (divisor for divisor in range(isqrt(max(n, 0)), 1, -1) if n % divisor == 0)
    n1 = next((divisor for divisor in divisors if admits(divisor) and admits(n // divisor)), None)
    if n1 is None:
        raise ValueError(
            f"a size of {n} has no Kronecker factor pair n1 n2 that can be used, with both above 1; use a full-width "
            "rotation (factors=None), a Hadamard or a per-head rotation at this site, or leave it without one"
        )
    return n1, n // n1


class Kronecker(MatrixTransform):
    """T = R1 (x) R2. With x viewed as X (..., n1, n2): x T = R1^T X R2, x T^-1 = R1^-T X R2^-1, w T^-T = R1^-1 W R2^-T.

    Args:
        r1: shape (n1, n1), or the int n1 for an identity, which costs nothing.
        r2: shape (n2, n2), or the int n2.
        orthogonal: whether both are.
    """

    def __init__(self, r1: Tensor | int, r2: Tensor | int, orthogonal: bool = True) -> None:
        factors = {"r1": r1, "r2": r2}
        matrices = {name: factor for name, factor in factors.items() if isinstance(factor, Tensor)}
        for name, matrix in matrices.items():
            if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(f"Kronecker got {name} of shape {tuple(matrix.shape)}; it needs a square matrix")
        sizes = [len(factor) if isinstance(factor, Tensor) else factor for factor in factors.values()]
        super().__init__(sizes[0] * sizes[1], orthogonal=orthogonal)
        self.n1, self.n2 = sizes
        self._active = list(matrices)
        for name, matrix in matrices.items():
            self._hold_matrix(name, matrix)

    def matrices(self) -> tuple[Tensor | None, Tensor | None]:
        """R1 and R2 in float64, None for an identity."""
        r1, r2 = (self.get_buffer(name) if name in self._active else None for name in ("r1", "r2"))
        return r1, r2

    def macs(self) -> int:
        """n n1 for R1 and n n2 for R2; an identity factor costs nothing."""
        return self.n * ((self.n1 if "r1" in self._active else 0) + (self.n2 if "r2" in self._active else 0))

    def steps(self, x: Tensor) -> tuple[KroneckerStep]:
        """One."""
        return (KroneckerStep(*(self._factor(name, x) if name in self._active else None for name in ("r1", "r2"))),)

    def extra_repr(self) -> str:
        """Sizes of both factors."""
        return f"n1={self.n1}, n2={self.n2}, orthogonal={self.orthogonal}"

    def _multiply(self, x: Tensor, inverted: bool, transposed: bool) -> Tensor:
        shape = x.shape
        if "r2" in self._active:
            x = x.reshape(-1, self.n2) @ self._matrix("r2", x, inverted, transposed)
        x = x.reshape(-1, self.n1, self.n2)
        if "r1" in self._active:
            x = torch.matmul(self._matrix("r1", x, inverted, not transposed), x)
        return x.reshape(shape)
