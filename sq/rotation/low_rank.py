"""LowRank: a diagonal and a stretch of a few directions, 2 n r multiply-adds online."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.kernels.steps import LowRankStep
from sq.rotation.transform import Transform, invert


class LowRank(Transform):
    """T = D (I + U (P - I) U^T), D = diag(d): scales channels, then applies P inside span(U) and nothing outside it.

    T^-1 = (I + U (P^-1 - I) U^T) D^-1 has the same form.

    Args:
        diagonal: d, nonzero, shape (n,); None for D = I, which costs nothing.
        basis: U with orthonormal columns, shape (n, r).
        stretch: P, invertible, shape (r, r).
    """

    def __init__(self, diagonal: Tensor | None, basis: Tensor, stretch: Tensor) -> None:
        n, rank = basis.shape
        if stretch.shape != (rank, rank) or (diagonal is not None and diagonal.shape != (n,)):
            got = None if diagonal is None else tuple(diagonal.shape)
            raise ValueError(
                f"LowRank got diagonal {got}, basis {tuple(basis.shape)}, stretch {tuple(stretch.shape)}; "
                "it needs (n,), (n, r), (r, r)"
            )
        if diagonal is not None and bool((diagonal == 0).any()):
            raise ValueError(f"LowRank got {int((diagonal == 0).sum())} factors that are zero; each must be invertible")
        super().__init__(n, orthogonal=False)
        exact = basis.detach().to(torch.float64)
        identity = torch.eye(rank, dtype=torch.float64, device=basis.device)
        if bool(((exact.T @ exact - identity).abs() > 1e-4).any()):
            raise ValueError("LowRank got a basis whose columns are not orthonormal; take Q of its QR first")
        stretch = stretch.detach().to(torch.float64)
        if diagonal is not None:
            self._hold("diagonal", diagonal)
        self._scaled = diagonal is not None
        self._hold("basis", basis)
        self._hold("change", (stretch - identity) @ exact.T)  # (P - I) U^T
        self._other_change(exact, inverted=True, transposed=False)  # a singular P is refused here, where it is built

    def forward(self, x: Tensor) -> Tensor:
        """x T."""
        return self._stretch(x * self._factor("diagonal", x) if self._scaled else x, self._factor("change", x))

    def inverse(self, x: Tensor) -> Tensor:
        """x T^-1."""
        x = self._stretch(x, self._other_change(x, inverted=True, transposed=False))
        return x / self._factor("diagonal", x) if self._scaled else x

    def inverse_transpose(self, w: Tensor) -> Tensor:
        """w T^-T."""
        w = w / self._factor("diagonal", w) if self._scaled else w
        return self._stretch(w, self._other_change(w, inverted=True, transposed=True))

    def transpose(self, w: Tensor) -> Tensor:
        """w T^T = w (I + U (P^T - I) U^T) D."""
        w = self._stretch(w, self._other_change(w, inverted=False, transposed=True))
        return w * self._factor("diagonal", w) if self._scaled else w

    def macs(self) -> int:
        """2 n r, and n for the diagonal where there is one (fold it into a norm gain to save it)."""
        n, rank = self.get_buffer("basis").shape
        return 2 * n * rank + (n if self._scaled else 0)

    def steps(self, x: Tensor) -> tuple[LowRankStep]:
        """One."""
        diagonal = self._factor("diagonal", x) if self._scaled else None
        return (LowRankStep(diagonal, self._factor("basis", x).T, self._factor("change", x)),)

    def directions(self) -> Tensor:
        """U (n, r), float64."""
        return self.get_buffer("basis").to(torch.float64)

    def change_of(self, *, inverse_transpose: bool = False) -> Tensor:
        """(P - I) U^T, float64, shape (r, n); that of T^-T instead. Without the diagonal."""
        change = self.get_buffer("change").to(torch.float64)
        return self._other_change(change, inverted=True, transposed=True) if inverse_transpose else change

    def _stretch(self, x: Tensor, change: Tensor) -> Tensor:
        basis = self._factor("basis", x)
        if x.dtype != torch.float32:  # in 16 bits the product is rounded before it is added, as kernels do
            return x + (x @ basis) @ change
        rows = x.reshape(-1, x.shape[-1])
        return torch.addmm(rows, rows @ basis, change).view(x.shape)  # two passes over x, not four

    def _other_change(self, x: Tensor, *, inverted: bool, transposed: bool) -> Tensor:
        """(Q - I) U^T in the dtype of x, Q being P inverted, transposed or both."""

        def make() -> Tensor:
            basis, change = (self.get_buffer(name).to(torch.float64) for name in ("basis", "change"))
            identity = torch.eye(len(change), dtype=torch.float64, device=change.device)
            stretch = change @ basis + identity  # P = I + (P - I) U^T U
            stretch = invert("LowRank", stretch) if inverted else stretch
            return ((stretch.mT if transposed else stretch) - identity) @ basis.T

        return self._derived("change" + "_inverse" * inverted + "_transpose" * transposed, x, make)
