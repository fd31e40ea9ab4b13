"""What matrices of transforms must be, and their inverses."""

from __future__ import annotations

import torch
from torch import Tensor


def check_orthogonal(owner: str, matrix: Tensor, tolerance: float = 1e-4) -> None:
    """Raise ValueError unless matrix (..., n, n) keeps probe vectors: p M M^T = p, at O(n^2) cost."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, matrix.shape[-1], generator=generator, dtype=torch.float64).to(matrix.device)
    exact = matrix.detach().to(torch.float64)
    error = float((probe @ exact @ exact.mT - probe).abs().max())
    if error > tolerance:
        raise ValueError(
            f"{owner} got a matrix that is not orthogonal (p M M^T differs from p by {error:.1e}, allowed is "
            f"{tolerance:.0e}); orthonormalize it or pass orthogonal=False"
        )


def invert(owner: str, matrix: Tensor) -> Tensor:
    """Float64 inverse of matrix (..., n, n); raises ValueError when it is singular."""
    inverse: Tensor
    inverse, info = torch.linalg.inv_ex(matrix.detach().to(torch.float64))
    if bool((info != 0).any()) or not bool(torch.isfinite(inverse).all()):
        raise ValueError(f"{owner} got a singular matrix; it must be invertible (add damping where it was built)")
    return inverse
