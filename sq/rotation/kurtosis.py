"""Fourth-moment rotation: Jacobi sweeps of plane rotations, each the exact minimizer of its plane's fourth moment.

Minimizing sum x^4 at fixed sum x^2 is minimizing kurtosis: it drives channels away from heavy tails, toward the flat
distributions that an integer grid covers best. The derivation is in README.md beside this file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sq.rotation.compiled_sweep import compiled_sweeps
from sq.rotation.givens import rotate_halves
from sq.rotation.samples import channel_rows, fitting_threads, token_rms

SLICE = 2**18  # entries worked on at a time, about 1 MB in float32: a slice and its copy stay in cache


def kurtosis_rotation(x: Tensor, sweeps: int = 1, unit_tokens: bool = True) -> Tensor:
    """R that lowers sum_tj (x R)_tj^4, shape (m, m), float64.

    A sweep meets every pair of channels once, m/2 disjoint pairs a step. No step raises the sum. Sums run in the dtype
    of x over slices of tokens and in float64 over the slices.

    Args:
        x: samples, shape (T, m), CalibrationError as by check_samples.
        sweeps: times every pair is met.
        unit_tokens: first divide every sample by its rms, so that each token counts the same.
    """
    if sweeps < 0:
        raise ValueError(f"got {sweeps} sweeps; 0 or more are allowed")
    rows = channel_rows(x)
    if unit_tokens:
        rows /= token_rms(rows.T).T
    m = rows.shape[0]
    if m < 2:
        return torch.eye(m, dtype=torch.float64, device=x.device)
    following = _round_robin(m + m % 2)
    turned = compiled_sweeps(rows, sweeps, following)
    return (_sweeps(rows, sweeps, following) if turned is None else turned).T.contiguous()


def _sweeps(rows: Tensor, sweeps: int, following: Tensor) -> Tensor:
    """R^T (m, m), float64, of rows (m, T): the form for any device and dtype, and the reference of the compiled one."""
    odd = rows.shape[0] % 2 == 1
    if odd:  # a row of zeros at place 0, which the schedule never moves: its partner sits a step out
        rows = torch.cat([torch.zeros_like(rows[:1]), rows])
    size = rows.shape[0]
    # On an accelerator one slice holds all tokens: launches cost more there than passes over memory.
    width = rows.shape[1] if rows.device.type != "cpu" else max(256, SLICE // size)
    slices = [part.clone() for part in torch.split(rows, width, dim=1)]
    scratch = [torch.empty_like(part) for part in slices]
    rotation = torch.eye(size, dtype=torch.float64, device=rows.device)  # rows of R^T: rotated exactly as those of x^T
    rotated = torch.empty_like(rotation)
    following = following.to(rows.device)
    with fitting_threads(rows.numel()):
        for _ in range(sweeps * (size - 1)):
            theta = fourth_moment_angle(*_sums(slices))
            if odd:
                theta[0] = 0.0
            c, s = theta.cos()[:, None], theta.sin()[:, None]
            low_c, low_s = c.to(rows.dtype), s.to(rows.dtype)
            for part, out in zip(slices, scratch, strict=True):
                rotate_halves(part, low_c, low_s, out)
                torch.index_select(out, 0, following, out=part)
            rotate_halves(rotation, c, s, rotated)
            torch.index_select(rotated, 0, following, out=rotation)
    return rotation[1:, 1:] if odd else rotation


def fourth_moment_angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """theta = atan2(2B, A - C) / 4 in [-pi/4, pi/4], the minimizer of sum x'^4 + y'^4 over all rotations of the plane.

    x' = cos x + sin y, y' = -sin x + cos y, p = x y, q = (y^2 - x^2) / 2, A = sum p^2, B = sum p q, C = sum q^2.
    """
    return torch.atan2(2 * b, a - c) / 4


def _sums(slices: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A, B, C of row k against row m/2 + k, each shape (m/2,), float64."""
    half = slices[0].shape[0] // 2
    total = torch.zeros(3, half, dtype=torch.float64, device=slices[0].device)
    for part in slices:
        first, second = part[:half], part[half:]
        p = first * second
        q = second.square().addcmul_(first, first, value=-1).mul_(0.5)
        total[0] += torch.linalg.vecdot(p, p)
        total[1] += torch.linalg.vecdot(p, q)
        total[2] += torch.linalg.vecdot(q, q)
    return total[0], total[1], total[2]


def _round_robin(size: int) -> Tensor:
    """The place each row comes from after a step of the circle method; size - 1 uses make the identity."""
    half = size // 2
    if half == 1:
        return torch.arange(2)
    first = [0, half, *range(1, half - 1)]
    second = [*range(half + 1, size), half - 1]
    return torch.tensor(first + second)
