"""Cayley SGD: gradient steps that stay on the orthogonal matrices (Li, Fuxin and Todorovic, arXiv 2002.01113).

The step, Om, a and the gradient |grad f|_F = |Om|_F are derived in README.md beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 5  # of the fixed-point iteration, as in the released code
EPSILON = 1e-8  # keeps a gradient of zero from dividing by zero


@dataclass(frozen=True)
class CayleyStep:
    """One step on matrices (..., n, n): R after it, and one number a matrix, shape (...), of |grad f|_F and of a.

    `limited` says whether 1 / |Om|_1 was the smaller bound of a, and not lr.
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
