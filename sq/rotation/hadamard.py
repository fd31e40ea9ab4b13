"""Hadamard matrices, their fast transform, and random rotations."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.kernels.backend import Backend, picks_triton
from sq.kernels.hadamard import hadamard
from sq.kernels.hadamard.tiles import tile_obstacle
from sq.kernels.steps import HadamardStep
from sq.rotation.hadamard_orders import base_matrix, find_split, hadamard_split, sylvester
from sq.rotation.transform import Dense, Transform

BLOCK = 64  # largest power-of-two factor applied as one matmul; measured faster on CPU than butterflies


def hadamard_matrix(order: int) -> Tensor:
    """H with entries +-1 and H H^T = order I, shape (order, order), float64: H_K (x) H_{2^m} of hadamard_split."""
    k, powers = hadamard_split(order)
    h: Tensor = torch.kron(base_matrix(k), sylvester(powers))
    return h


def has_hadamard(order: int) -> bool:
    """Whether hadamard_matrix(order) works."""
    return find_split(order) is not None


def random_signs(n: int, seed: int) -> Tensor:
    """n independent signs +-1, float64, the same on every machine for one seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n,), generator=generator, dtype=torch.int64).to(torch.float64) * 2 - 1


def random_orthogonal(n: int, seed: int) -> Tensor:
    """Haar-distributed orthogonal matrix, shape (n, n), float64: Q of a Gaussian's QR, with the signs of diag(R) in Q.

    Source: Mezzadri, How to generate random matrices from the classical compact groups, 2007.
    """
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    signs: Tensor = torch.where(r.diagonal() < 0, -1.0, 1.0)
    rotation: Tensor = signs * q
    return rotation.contiguous()


class Hadamard(Transform):
    """T = diag(signs) H / sqrt(n), H = H_K (x) H_{2^m}, applied in O(n (K + m)).

    x on CUDA that needs no gradient is transformed by kernels/hadamard where its Triton kernel takes it (`backend`, see
    kernels/backend.py), everything else by torch. Sums of the kernel are float32 for every dtype.

    n is K 2^m, signs (n,) are +-1; `random_signs(n, seed)` makes the randomized Hadamard of QuaRot. ValueError is
    raised for an n without a Hadamard matrix.
    """

    backend: Backend = "auto"

    def __init__(self, n: int, signs: Tensor | None = None) -> None:
        k, powers = hadamard_split(n)
        super().__init__(n, orthogonal=True)
        self.k, self.powers = k, powers
        if signs is not None:
            if signs.shape != (n,) or not bool((signs.abs() == 1).all()):
                raise ValueError(f"Hadamard of size {n} got signs {tuple(signs.shape)}; it needs {n} values +1 or -1")
            self._hold("signs", signs)
        self._randomized = signs is not None
        # Left to right the Kronecker factors of H. All but the first are powers of two, hence symmetric.
        self._sizes = ([k] if k > 1 else []) + _blocks(powers)
        for size in set(self._sizes):
            self._hold(f"h{size}", base_matrix(k) if size == k else sylvester(size))

    def forward(self, x: Tensor) -> Tensor:
        """x T."""
        if self._by_kernel(x):
            x = x * self._factor("signs", x) if self._randomized else x
            return hadamard(x, self._base(x), backend=self.backend)
        x = x * self.n**-0.5  # first, so that float16 sums stay below |x| sqrt(n)
        if self._randomized:
            x = x * self._factor("signs", x)
        return self._multiply(x, transposed=False)

    def inverse(self, x: Tensor) -> Tensor:
        """x T^T."""
        if self._by_kernel(x):
            x = hadamard(x, self._base(x).T, backend=self.backend)
        else:
            x = self._multiply(x * self.n**-0.5, transposed=True)
        return x * self._factor("signs", x) if self._randomized else x

    def macs(self) -> int:
        """n (K + m) additions: K a feature for H_K, one for each of m butterflies. Signs and scale are not counted."""
        return self.n * ((self.k if self.k > 1 else 0) + self.powers.bit_length() - 1)

    def steps(self, x: Tensor) -> tuple[HadamardStep]:
        """One."""
        return (HadamardStep(self._base(x).to(x.dtype), self._factor("signs", x) if self._randomized else None),)

    def extra_repr(self) -> str:
        """K and 2^m."""
        return f"n={self.n} = {self.k} x {self.powers}, randomized={self._randomized}"

    def _by_kernel(self, x: Tensor) -> bool:
        if x.requires_grad and torch.is_grad_enabled():
            return False
        return picks_triton(self.backend, x, tile_obstacle(self.k, self.powers, x.element_size()))

    def _base(self, x: Tensor) -> Tensor:
        """H_K in float32, as the kernel reads it."""
        return self._cast(f"h{self.k}", torch.float32) if self.k > 1 else x.new_ones(1, 1, dtype=torch.float32)

    def _multiply(self, x: Tensor, transposed: bool) -> Tensor:
        shape, left, right = x.shape, 1, self.n
        for size in self._sizes:
            right //= size
            h = self._factor(f"h{size}", x)
            if right == 1:
                x = x.reshape(-1, size) @ (h.T if transposed else h)
            else:
                x = torch.matmul(h if transposed else h.T, x.reshape(-1, left, size, right))
            left *= size
        return x.reshape(shape)


def blind_rotation(kind: str, n: int, seed: int, *, signs: bool, what: str, option: str, also: str = "") -> Transform:
    """A rotation of size n from a seed alone: kind "hadamard", with random signs if `signs`, or "orthogonal" (Haar).

    QuantizationError is raised for a Hadamard of an order that has none. `what`, `option` and `also` are for its
    message: what has size n, the setting to change, and another way out.
    """
    if kind == "orthogonal":
        return Dense(random_orthogonal(n, seed), orthogonal=True)
    if not has_hadamard(n):
        raise QuantizationError(
            f"{what} {n} has no Hadamard matrix that exists or is known here; set {option}=orthogonal (a random "
            f"rotation, {n} multiply-adds a feature where it is online){also}"
        )
    return Hadamard(n, random_signs(n, seed) if signs else None)


def _blocks(powers: int) -> list[int]:
    """A power of two as a product of nearly equal powers of two of at most BLOCK."""
    exponent = powers.bit_length() - 1
    count = -(-exponent // (BLOCK.bit_length() - 1))
    return [2 ** (exponent // count + (i < exponent % count)) for i in range(count)]
