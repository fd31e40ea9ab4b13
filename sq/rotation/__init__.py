"""Invertible transforms of a site's features and the closed forms that build them."""

from __future__ import annotations

from sq.rotation.hadamard import Hadamard, hadamard_matrix, has_hadamard, random_orthogonal, random_signs
from sq.rotation.kronecker import Kronecker, kronecker_factors
from sq.rotation.transform import Compose, Dense, Diagonal, Identity, PerHead, Transform

__all__ = [
    "Compose",
    "Dense",
    "Diagonal",
    "Hadamard",
    "Identity",
    "Kronecker",
    "PerHead",
    "Transform",
    "hadamard_matrix",
    "has_hadamard",
    "kronecker_factors",
    "random_orthogonal",
    "random_signs",
]
