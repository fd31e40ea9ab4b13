"""Rotations that look at no data: a Hadamard, with or without random signs, or a Haar rotation in its place."""

from __future__ import annotations

from sq.errors import QuantizationError
from sq.rotation.hadamard import Hadamard, has_hadamard, random_orthogonal, random_signs
from sq.rotation.transform import Dense, Transform


def blind_rotation(kind: str, n: int, seed: int, *, signs: bool, what: str, option: str, also: str = "") -> Transform:
    """A rotation of size n from a seed alone: kind "hadamard", with random signs if `signs`, or "orthogonal" (Haar).

    QuantizationError is raised for a Hadamard of an order that has none. `what`, `option` and `also` are for its
    message: what has size n, the setting to change, and another way out.
    """
    if kind == "orthogonal":
        return Dense(random_orthogonal(n, seed), orthogonal=True)
    if not has_hadamard(n):
        raise QuantizationError(
            f"{what} {n} has no Hadamard matrix that exists or is known here; set {option}=orthogonal (a random "
            f"rotation, {n} multiply-adds a feature where it is online){also}"
        )
    return Hadamard(n, random_signs(n, seed) if signs else None)
