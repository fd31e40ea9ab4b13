"""Cayley SGD: gradient steps that stay on the orthogonal matrices (Li, Fuxin and Todorovic, arXiv 2002.01113).

For a square R with gradient G = df/dR and learning rate lr, as in SpinQuant train_utils/optimizer.py without momentum:

    rows of R are scaled to length 1
    Om = A - A^T,    A = V R - R^T (R V R) / 2,    V = -G^T
    a  = min(lr, 1 / (largest column sum of |Om| + 1e-8))
    Y  = R^T + a V,  five times  Y <- R^T + a/2 Om (R^T + Y),  R <- Y^T

The iteration approaches the Cayley transform R^T <- (I - a/2 Om)^-1 (I + a/2 Om) R^T, which is orthogonal because Om is
skew: with a |Om|_1 <= 1 each round halves the distance at least.

On an orthogonal R, Om = (R^T G - G^T R) / 2, and R moves by -a R Om: against the Riemannian gradient

    grad f = (G - R G^T R) / 2 = R Om,    |grad f|_F = |Om|_F

of the Stiefel manifold with the metric of R^(n x n). So df/da = -|Om|_F^2 at a = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 5  # of the fixed-point iteration, as in the released code
EPSILON = 1e-8  # keeps a gradient of zero from dividing by zero


@dataclass(frozen=True)
class CayleyStep:
    """One step on matrices (..., n, n); the numbers are one a matrix, shape (...).

    Attributes:
        rotation: R after the step, (..., n, n).
        gradient_norm: |grad f|_F in front of it.
        size: a.
        limited: whether 1 / |Om|_1 was the smaller bound of a, and not lr.
    """

    rotation: Tensor
    gradient_norm: Tensor
    size: Tensor
    limited: Tensor


@torch.no_grad()
def cayley_step(rotation: Tensor, gradient: Tensor, lr: float) -> CayleyStep:
    """One step of Cayley SGD, formulas above, on each of the matrices R (..., n, n) with gradients df/dR."""
    r = rotation / torch.linalg.vector_norm(rotation, dim=-1, keepdim=True)
    omega = skew(r, gradient)
    bound = 1 / (omega.abs().sum(-2).amax(-1) + EPSILON)
    size = bound.clamp_max(lr)
    a = size[..., None, None]
    start = r.mT
    moved = start - a * gradient.mT
    for _ in range(ROUNDS):
        moved = start + (a / 2) * (omega @ (start + moved))
    norm = torch.linalg.matrix_norm(omega)
    return CayleyStep(moved.mT.contiguous(), norm, size, bound < lr)


def skew(rotation: Tensor, gradient: Tensor) -> Tensor:
    """Om, (..., n, n): R Om is the Riemannian gradient."""
    along = -gradient.mT @ rotation
    part = along - rotation.mT @ (rotation @ along) / 2
    return part - part.mT


def orthogonality_error(rotation: Tensor) -> float:
    """Largest entry of |R^T R - I| over all matrices (..., n, n), in the dtype of R."""
    eye = torch.eye(rotation.shape[-1], dtype=rotation.dtype, device=rotation.device)
    return float((rotation.mT @ rotation - eye).abs().max())
