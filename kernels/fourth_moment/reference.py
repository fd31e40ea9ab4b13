"""A step of fourth-moment rotations in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def fourth_moment_angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """theta = atan2(2B, A - C) / 4 in [-pi/4, pi/4], the minimizer of sum x'^4 + y'^4 over all rotations of the plane.

    x' = cos x + sin y, y' = -sin x + cos y, p = x y, q = (y^2 - x^2) / 2, A = sum p^2, B = sum p q, C = sum q^2.
    """
    return torch.atan2(2 * b, a - c) / 4


def fourth_moment_sums(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and C over the last axis of x = first and y = second, (..., T) of one dtype, in which they are summed."""
    p = first * second
    q = second.square().addcmul_(first, first, value=-1).mul_(0.5)
    return torch.linalg.vecdot(p, p), torch.linalg.vecdot(p, q), torch.linalg.vecdot(q, q)


def turn_pairs_reference(rows: Tensor, turned: Tensor, pairs: Tensor) -> None:
    """`turn_pairs` with sums in float64 of float64 products, angles in float64 and rows turned in their own dtype."""
    left, right = pairs.to(torch.int64)
    theta = fourth_moment_angle(*fourth_moment_sums(rows[:, left].double(), rows[:, right].double()))
    c, s = theta.cos()[..., None], theta.sin()[..., None]
    for x in (rows, turned):
        first, second, low_c, low_s = x[:, left], x[:, right], c.to(x.dtype), s.to(x.dtype)
        x[:, left] = low_c * first + low_s * second
        x[:, right] = low_c * second - low_s * first
