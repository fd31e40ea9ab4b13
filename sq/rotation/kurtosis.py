"""Fourth-moment rotation: Jacobi sweeps of plane rotations, each the exact minimizer of its plane's fourth moment.

Minimizing sum x^4 at fixed sum x^2 is minimizing kurtosis: it drives channels away from heavy tails, toward the flat
distributions that an integer grid covers best. The derivation is in README.md beside this file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sq.kernels.fourth_moment import fourth_moment_angle, fourth_moment_sums
from sq.rotation.compiled_sweep import compiled_sweeps
from sq.rotation.givens import rotate_halves
from sq.rotation.launched_sweep import launched_sweeps
from sq.rotation.samples import check_samples, fitting_threads, token_rms

SLICE = 2**18  # entries worked on at a time, about 1 MB in float32: a slice and its copy stay in cache


def kurtosis_rotation(x: Tensor, sweeps: int = 1, unit_tokens: bool = True) -> Tensor:
    """R that lowers sum_tj (x R)_tj^4, shape (m, m), float64: kurtosis_rotations of one set of samples (T, m)."""
    check_samples(x)
    return _rotations(x[None], sweeps, unit_tokens)[0]


def kurtosis_rotations(x: Tensor, sweeps: int = 1, unit_tokens: bool = True) -> Tensor:
    """R_b that lowers sum_tj (x_b R_b)_tj^4 for each of B independent sets of samples, shape (B, m, m), float64.

    A sweep meets every pair of channels once, m/2 disjoint pairs a step, of all sets at once. No step raises a sum.
    float32 samples on a CPU take the loops of compiled_sweep.py, on a CUDA device the launches of launched_sweep.py;
    others, and those where numba or Triton is missing, the form in torch, with sums in the dtype of x over slices of
    tokens and in float64 over the slices.

    Args:
        x: samples, shape (B, T, m), such as heads or blocks. CalibrationError as by check_samples.
        sweeps: times every pair is met.
        unit_tokens: first divide every sample by its rms, so that each token counts the same.
    """
    if x.dim() != 3:
        raise ValueError(f"got samples of shape {tuple(x.shape)}; (B, T, m) is allowed, x[None] for one set of them")
    check_samples(x.flatten(0, 1))
    return _rotations(x, sweeps, unit_tokens)


def _rotations(x: Tensor, sweeps: int, unit_tokens: bool) -> Tensor:
    if sweeps < 0:
        raise ValueError(f"got {sweeps} sweeps; 0 or more are allowed")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.detach().mT.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if unit_tokens:
        rows /= token_rms(rows.mT).mT
    batch, m, _ = rows.shape
    if m < 2:
        return torch.ones(batch, m, m, dtype=torch.float64, device=x.device)
    following = _round_robin(m + m % 2)
    for fast in (compiled_sweeps, launched_sweeps):
        if (turned := fast(rows, sweeps, following)) is not None:
            return turned.mT.contiguous()
    return _sweeps(rows, sweeps, following).mT.contiguous()


def _sweeps(rows: Tensor, sweeps: int, following: Tensor) -> Tensor:
    """R^T (B, m, m), float64, of rows (B, m, T): the form for any device and dtype, and the reference of the others."""
    batch, m, tokens = rows.shape
    size = len(following)
    rows = rows.transpose(0, 1)  # places outside, sets inside: the two halves are those of every set
    if size > m:  # a row of zeros at place 0, which the schedule never moves: its partner sits a step out
        rows = torch.cat([torch.zeros_like(rows[:1]), rows])
    # On an accelerator one slice holds all tokens: launches cost more there than passes over memory.
    width = tokens if rows.device.type != "cpu" else max(256, SLICE // size)
    slices = [part.reshape(size * batch, -1).clone() for part in torch.split(rows, width, dim=2)]
    scratch = [torch.empty_like(part) for part in slices]
    # Rows of R^T: rotated exactly as those of x^T.
    rotation = torch.eye(size, dtype=torch.float64, device=rows.device).repeat_interleave(batch, dim=0)
    rotated = torch.empty_like(rotation)
    following = (following[:, None] * batch + torch.arange(batch)).flatten().to(rows.device)
    with fitting_threads(rows.numel()):
        for _ in range(sweeps * (size - 1)):
            theta = fourth_moment_angle(*_sums(slices))
            if size > m:
                theta[:batch] = 0.0
            c, s = theta.cos()[:, None], theta.sin()[:, None]
            low_c, low_s = c.to(rows.dtype), s.to(rows.dtype)
            for part, out in zip(slices, scratch, strict=True):
                rotate_halves(part, low_c, low_s, out)
                torch.index_select(out, 0, following, out=part)
            rotate_halves(rotation, c, s, rotated)
            torch.index_select(rotated, 0, following, out=rotation)
    turned: Tensor = rotation.unflatten(0, (size, batch)).transpose(0, 1)
    return turned[:, size - m :, size - m :]


def _sums(slices: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A, B, C of row k against row N/2 + k of N, each shape (N/2,), float64."""
    half = slices[0].shape[0] // 2
    total = torch.zeros(3, half, dtype=torch.float64, device=slices[0].device)
    for part in slices:
        for sums, more in zip(total, fourth_moment_sums(part[:half], part[half:]), strict=True):
            sums += more
    return total[0], total[1], total[2]


def _round_robin(size: int) -> Tensor:
    """The place each row comes from after a step of the circle method; size - 1 uses make the identity."""
    half = size // 2
    if half == 1:
        return torch.arange(2)
    first = [0, half, *range(1, half - 1)]
    second = [*range(half + 1, size), half - 1]
    return torch.tensor(first + second)
