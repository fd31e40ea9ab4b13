"""Products of float64 matrices that are the same on every machine and with any number of threads.

BLAS adds in an order that depends on the machine and its threads, and floating point rounds each sum. Here a matrix is
cut into slices of few bits: sums of their products are whole numbers below 2^53 times a power of two, which float64
holds exactly in any order (Ozaki et al., Error-free transformations of matrix multiplication, 2012).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SLICES = 3  # together 3 * 22 bits at an inner size of 256: more than the 53 of float64


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, (m, k) by (k, n), float64; relative to the largest entries of a row of a and a column of b the error is
    about 2^-53."""
    bits = (53 - math.ceil(math.log2(max(2, a.shape[1])))) // 2
    left, right = _slices(a, 1, bits), _slices(b, 0, bits)
    total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.float64)
    pairs = [(i, j) for i in range(SLICES) for j in range(SLICES) if i + j < SLICES]
    for i, j in sorted(pairs, key=lambda pair: (-sum(pair), pair)):  # the small ones first, in a fixed order
        total = total + left[i] @ right[j]
    return total


def orthogonal_part(matrix: Tensor, steps: int = 3) -> Tensor:
    """The orthogonal matrix nearest to one that is nearly orthogonal, by Newton's iteration for the polar factor,
    X <- X (3 I - X^T X) / 2, which squares the error (Higham, Functions of Matrices, 2008, section 8.3)."""
    found, eye = matrix.to(torch.float64), torch.eye(len(matrix), dtype=torch.float64)
    for _ in range(steps):
        found = exact_product(found, (3 * eye - exact_product(found.T.contiguous(), found)) / 2)
    return found


def _slices(matrix: Tensor, dim: int, bits: int) -> list[Tensor]:
    """Parts that add up to the matrix, each a row's (dim 1) or column's power of two times integers of `bits` bits."""
    rest, found = matrix.to(torch.float64), []
    for _ in range(SLICES):
        # frexp: |x| < 2^exponent. Adding and taking away a power of two rounds to its last place, exactly.
        exponent = torch.frexp(rest.abs().amax(dim, keepdim=True)).exponent
        anchor = torch.from_numpy(np.ldexp(3.0, exponent.numpy() + 51 - bits))
        part = (rest + anchor) - anchor
        found.append(part)
        rest = rest - part
    return found
