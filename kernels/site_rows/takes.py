"""Which formats and transforms `SiteRows` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..formats import Format, grid_obstacle
from ..steps import BlockStep, DiagonalStep, KroneckerStep, LowRankStep, Step


class RowForm(NamedTuple):
    """T as x -> x D -> x + (x U) C -> [x_i B_i]_i -> R1^T X, for a token viewed as n1 rows x_i; None: an identity."""

    diagonal: Tensor | None = None  # D's, (n,)
    basis: Tensor | None = None  # U^T, (r, n)
    change: Tensor | None = None  # C, (r, n)
    blocks: Tensor | None = None  # B (n1, n2, n2), or (n2, n2) where all rows share it
    r1: Tensor | None = None  # (n1, n1)
    n1: int = 1


def form_of(steps: Sequence[Step] | None, n: int) -> RowForm | None:
    """The form of a transform of n features by its steps; None for another form or no steps known."""
    if steps is None:
        return None
    form, rest = RowForm(), list(steps)
    if rest and isinstance(step := rest[0], DiagonalStep):
        form, rest = form._replace(diagonal=step.t), rest[1:]
    if rest and isinstance(step := rest[0], LowRankStep) and (form.diagonal is None or step.diagonal is None):
        diagonal = step.diagonal if form.diagonal is None else form.diagonal
        form, rest = form._replace(diagonal=diagonal, basis=step.basis, change=step.change), rest[1:]
    if rest and isinstance(step := rest[0], KroneckerStep):
        n2 = n // len(step.r1) if step.r1 is not None else n if step.r2 is None else len(step.r2)
        form, rest = form._replace(blocks=step.r2, r1=step.r1, n1=n // n2), rest[1:]
    elif rest and isinstance(step := rest[0], BlockStep):
        form, rest = form._replace(blocks=step.blocks, r1=step.first, n1=len(step.blocks)), rest[1:]
    return None if rest else form


def obstacle(format: Format, n: int) -> str | None:
    """Why codes of this format cannot be made, or None: integers of up to 4 bits, or 8 of other than asymmetric ones,
    a scale a token."""
    if (found := grid_obstacle(format)) is not None:
        return found
    if format.group is not None:
        return f"{format.name} has a scale for every {format.group} features, not one a token"
    if format.bits > (4 if format.scheme == "asymmetric" else 8):
        return f"{format.scheme} codes of {format.bits} bits do not fit a signed byte"
    return f"planes are halves of a token, and {n} features are odd" if n % 2 else None
