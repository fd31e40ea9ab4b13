"""The steps of a transform, as plain data: what `sq.rotation` describes its transforms by, and operations read.

A transform is a sequence of them, each applied to the result of the one before; an empty sequence is the identity.
Tensors are in the dtype of the activations x (..., n).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor


class KroneckerStep(NamedTuple):
    """x (R1 (x) R2): R1^T X R2 for a token viewed as X (n1, n2); r1 (n1, n1), r2 (n2, n2), None for an identity."""

    r1: Tensor | None
    r2: Tensor | None


class LowRankStep(NamedTuple):
    """x -> v + (v U) C with v = x D: the balance D (I + U (P - I) U^T) of sq/rotation/low_rank.py."""

    diagonal: Tensor | None  # D's, (n,); None for an identity
    basis: Tensor  # U^T, (r, n)
    change: Tensor  # C = (P - I) U^T, (r, n)


class DiagonalStep(NamedTuple):
    """x -> x t, t (n,)."""

    t: Tensor


class HadamardStep(NamedTuple):
    """x -> (x signs) (H_K (x) H_{2^m}) / sqrt(n), n = K 2^m, with Sylvester's matrix for H_{2^m}."""

    base: Tensor  # H_K, (K, K), entries +-1
    signs: Tensor | None  # (n,), +-1; None for all +1


class BlockStep(NamedTuple):
    """x -> R1^T [x_i B_i]_i for a token viewed as n1 rows x_i of n2 features; R1 mixes the rows."""

    blocks: Tensor  # B, (n1, n2, n2)
    first: Tensor | None  # R1, (n1, n1); None for an identity


Step: TypeAlias = BlockStep | KroneckerStep | LowRankStep | DiagonalStep | HadamardStep
