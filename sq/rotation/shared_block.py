"""Transforms that engines can run: one k x k matrix that every k neighbouring features share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.rotation.hadamard import Hadamard
from sq.rotation.hadamard_orders import sylvester
from sq.rotation.kronecker import Kronecker
from sq.rotation.transform import Dense, Identity, PerHead, Transform

MOST = 512  # features of a stored matrix: a wider product in front of a linear would cost about what the linear does
TOLERANCE = 1e-9  # of entries of orthogonal matrices in float64
NEAREST = "method=singlequant_export, which leaves a Hadamard of blocks in front of `down` alone"


@dataclass(frozen=True)
class Block:
    """M, float64 (k, k), of a transform x (I (x) M).

    Attributes:
        size: k.
        matrix: M; None for H_k / sqrt(k) by Sylvester's construction, which readers know by name.
    """

    size: int
    matrix: Tensor | None


def shared_block(transform: Transform, where: str) -> Block | None:
    """M of a transform x (I (x) M); None for the identity.

    Raises:
        QuantizationError: the transform is no such thing, or M is too wide; `where` is for the message.
    """
    if isinstance(transform, Identity):
        return None
    if isinstance(transform, Hadamard) and transform.k == 1 and "signs" not in dict(transform.named_buffers()):
        return Block(transform.n, None)
    matrix = _matrix(transform)
    if matrix is None:
        raise QuantizationError(
            f"{where}: a {type(transform).__name__} of {transform.n} features stands in front of the linears; the "
            f"format has a Hadamard matrix of a power of two, or one of at most {MOST} x {MOST}, which all blocks of "
            f"neighbouring features share. Nearest: {NEAREST}"
        )
    k = len(matrix)
    if k & (k - 1) == 0 and torch.allclose(matrix * k**0.5, sylvester(k).to(matrix), rtol=0, atol=TOLERANCE * k):
        return Block(k, None)
    return Block(k, matrix)


def _matrix(transform: Transform) -> Tensor | None:
    """M, float64 (k, k); None where there is none, or a wide one that is not I (x) M of less."""
    if isinstance(transform, Kronecker):
        r1, r2 = transform.matrices()
        return r2 if r1 is None else None
    if isinstance(transform, PerHead):
        blocks = transform.get_buffer("blocks")
        return blocks[0] if bool((blocks == blocks[:1]).all()) else None
    known = isinstance(transform, (Dense, Hadamard)) and transform.n <= MOST
    return transform.matrix() if known else None


def width_obstacle(kind: str, n: int) -> str | None:
    """Why a full-width rotation of n features, "hadamard" or another kind, is none of them, or None if it is."""
    if n <= MOST or (kind == "hadamard" and n & (n - 1) == 0):
        return None
    known = "a Hadamard matrix of a power of two" if kind == "hadamard" else f"a matrix of at most {MOST} x {MOST}"
    return f"its {kind} rotation of {n} features is not {known}"
