"""Trainable invertible transforms whose inverse costs nothing: factors P = U diag(s) V^T, alone and in Kronecker pairs.

U and V are orthogonal and s positive whatever is learned: README.md beside this file.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from sq.rotation import Diagonal, Kronecker, random_orthogonal
from sq.rotation.transform import Transform


class Cayley(nn.Module):
    """X -> U0 (I - A/2)^-1 (I + A/2) with A = L - L^T, L the strictly lower triangle of X; batched.

    torch.nn.utils.parametrizations.orthogonal gives the same numbers. Its solve looks for singular matrices: a training
    that diverges would end in its error, which names no layer and no step, and a GPU would wait for every answer.
    `base` is U0, orthogonal, shape (..., n, n).
    """

    base: Tensor

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.register_buffer("base", base)

    def forward(self, x: Tensor) -> Tensor:
        """U, shape of x."""
        lower = x.tril(-1)
        half = (lower - lower.mT) / 2
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        rotation: Tensor = self.base @ torch.linalg.solve_ex(eye - half, eye + half).result
        return rotation


class AffineFactor(nn.Module):
    """P = U diag(s) V^T of shape (n, n); it starts as a Haar rotation.

    Inside torch.nn.utils.parametrize.cached() U and V are computed once. `seeds` are those of U0 and V0; the parameters
    get the dtype and device of `like`.
    """

    sides: Tensor

    def __init__(self, n: int, seeds: tuple[int, int], like: Tensor) -> None:
        super().__init__()
        self.n = n
        base = torch.stack([random_orthogonal(n, seed) for seed in seeds]).to(like)
        self.sides = nn.Parameter(torch.zeros_like(base))  # U and V in one batch: one solve
        register_parametrization(self, "sides", Cayley(base))
        self.log_scale = nn.Parameter(base.new_zeros(n))

    def forward(self) -> tuple[Tensor, Tensor]:
        """P and P^-1."""
        u, v = self.sides
        s = self.log_scale.exp()
        return (u * s) @ v.T, (v / s) @ u.T

    @torch.no_grad()
    def final(self) -> Tensor:
        """P in float64."""
        matrix: Tensor = copy.deepcopy(self).double()()[0]
        return matrix


class AffineKronecker(Kronecker):
    """T = P1 (x) P2 with trainable factors; an int in the place of one is an identity of that size.

    It is applied as `Kronecker` is, so that what is trained is what `frozen` installs.
    """

    def __init__(self, left: AffineFactor | int, right: AffineFactor | int) -> None:
        factors = {"r1": left, "r2": right}
        sizes = [factor if isinstance(factor, int) else factor.n for factor in factors.values()]
        super().__init__(sizes[0], sizes[1], orthogonal=False)
        self.factors = nn.ModuleDict({k: factor for k, factor in factors.items() if isinstance(factor, AffineFactor)})
        self._active = list(self.factors)

    def _factor(self, name: str, x: Tensor) -> Tensor:
        direct: Tensor = self.factors[name]()[0]
        return direct.to(x)

    def _inverse(self, name: str, x: Tensor) -> Tensor:
        inverse: Tensor = self.factors[name]()[1]
        return inverse.to(x)

    def frozen(self) -> Kronecker:
        """The transform as it is now, its factors in float64."""
        r1, r2 = (self.factors[k].final() if k in self.factors else n for k, n in (("r1", self.n1), ("r2", self.n2)))  # type: ignore[operator]
        return Kronecker(r1, r2, orthogonal=False)


class Scaling(Transform):
    """T = diag(t), t = start exp(a): start (n,) is positive, a is trained from 0, like `like` in dtype and device."""

    start: Tensor

    def __init__(self, start: Tensor, like: Tensor) -> None:
        super().__init__(start.numel(), orthogonal=False)
        self._hold("start", start)
        self.log_scale = nn.Parameter(torch.zeros(start.numel()).to(like))

    def forward(self, x: Tensor) -> Tensor:
        """x * t."""
        return x * (self._factor("start", x) * self.log_scale.exp().to(x))

    def inverse(self, x: Tensor) -> Tensor:
        """x / t, as a product with 1/t: a gradient of fewer passes."""
        return x * (self.log_scale.neg().exp().to(x) / self._factor("start", x))

    def inverse_transpose(self, w: Tensor) -> Tensor:
        """w / t."""
        return self.inverse(w)

    def transpose(self, w: Tensor) -> Tensor:
        """w * t."""
        return self.forward(w)

    def macs(self) -> int:
        """One multiplication a feature."""
        return self.n

    @torch.no_grad()
    def frozen(self) -> Diagonal:
        """The transform as it is now, in float64."""
        return Diagonal(self.start * self.log_scale.double().exp())
