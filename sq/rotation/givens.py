"""Plane (Givens) rotations: the one building block of every closed form here."""

from __future__ import annotations

import torch
from torch import Tensor


def plane_rotation(m: int, i: int, j: int, theta: float | Tensor) -> Tensor:
    """G (m, m), float64, with x G: x_i' = c x_i + s x_j, x_j' = -s x_i + c x_j; c = cos(theta), s = sin(theta)."""
    angle = torch.as_tensor(theta, dtype=torch.float64)
    rotation = torch.eye(m, dtype=torch.float64)
    rotation[i, i], rotation[j, i] = angle.cos(), angle.sin()
    rotation[i, j], rotation[j, j] = -angle.sin(), angle.cos()
    return rotation


def rotate_halves(rows: Tensor, c: Tensor, s: Tensor, out: Tensor) -> None:
    """Rotate m/2 disjoint planes at once: row k with row m/2 + k, by the angle (c_k, s_k), into out.

    Channels are rows: rows and out are two tensors of shape (m, T), m even; c and s have shape (m/2, 1).
    """
    half = rows.shape[0] // 2
    first, second = rows[:half], rows[half:]
    torch.mul(first, c, out=out[:half])
    out[:half].addcmul_(second, s)
    torch.mul(second, c, out=out[half:])
    out[half:].addcmul_(first, s, value=-1)


def givens_chain(v: Tensor) -> Tensor:
    """G, a product of m - 1 plane rotations, with v G = |v| e_1; shape (m, m), float64, determinant 1.

    Multiplied out, with t_k = |v[k:]| and u_k = v[k:] / t_k padded with zeros in front (derived in README.md):
        column 0 = u_0, column k = (v_{k-1} / t_{k-1}) u_k - (t_k / t_{k-1}) e_{k-1}.

    v is any vector, shape (m,); the zero vector gives the identity.
    """
    v = v.detach().to(torch.float64)
    m = v.numel()
    peak = v.abs().max()
    if m == 0 or peak == 0:
        return torch.eye(m, dtype=torch.float64, device=v.device)
    v = v / peak  # squares neither overflow nor vanish
    tail = v.square().flip(0).cumsum(0).flip(0).sqrt()
    # The last plane starts from v_{m-1} itself and not from its length, hence the sign.
    tail[-1] = v[-1]
    alive = tail != 0
    unit = torch.where(alive, v[:, None] / torch.where(alive, tail, 1.0), 0.0).tril()  # column k is u_k
    unit.diagonal()[~alive] = 1.0  # nothing left to rotate: these planes stay
    before = torch.where(alive[:-1], tail[:-1], 1.0)
    cosine = torch.where(alive[:-1], v[:-1] / before, 1.0)
    sine = torch.where(alive[:-1], tail[1:] / before, 0.0)
    unit[:, 1:] *= cosine
    unit[:-1, 1:] -= torch.diag(sine)
    return unit
