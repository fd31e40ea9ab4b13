"""The criterion J, by which structures of balance are ranked in seconds, with nothing quantized.

    J(T) = tr(T^T C T) tr(T^-1 M T^-T)

C and M are second moments of a site's activations and weights, each with mean diagonal 1 and damped. Behind a rotation
that flattens, the error of rounding activations is proportional to the first trace times the weights' energy, and that
of rounding weights to the second times the activations': both to J. The dense balance attains the least J.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sq.models.families import SITES
from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method
from sq.rotation import (
    Compose,
    Diagonal,
    Identity,
    Transform,
    block_balance,
    dense_balance,
    diagonal_balance,
    largest_block,
    low_rank_balance,
)

DAMPING = 0.01


def criterion(transform: Transform, c: Tensor, m: Tensor) -> float:
    """J of a transform for second moments C and M (n, n), normalized by the caller (`normalized`)."""
    left, right = transform(c), transform.inverse_transpose(m)  # C T and M T^-T
    energy = transform(left.T.contiguous()).trace() * transform.inverse_transpose(right.T.contiguous()).trace()
    return float(energy)


def least(c: Tensor, m: Tensor) -> float:
    """The least J of any T: (tr (C^(1/2) M C^(1/2))^(1/2))^2, where the dense balance arrives."""
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return float(torch.linalg.eigvalsh(root @ m @ root).clamp(min=0).sqrt().sum() ** 2)


def normalized(moment: Tensor) -> Tensor:
    """Float64, mean diagonal 1, then 0.01 added to the diagonal."""
    exact = moment.detach().to(torch.float64)
    exact = exact / exact.diagonal().mean()
    exact.diagonal().add_(DAMPING)
    return exact


@dataclass(frozen=True)
class Structure:
    """A structure of balance: what it is called, what it costs a feature, and how it is built from (C, M)."""

    name: str
    cost: Callable[[int], float]
    build: Callable[[Tensor, Tensor], Transform]


def structures(block: int = 128, ranks: Sequence[int] = (8, 16, 32)) -> list[Structure]:
    """Those that are compared: none, diagonal, blocks, low rank, low rank in front of blocks, dense."""

    def size(n: int) -> int:
        return largest_block(n, block)

    def blocks(c: Tensor, m: Tensor) -> Transform:
        return _then(_diagonal(c, m), c, m, lambda c, m: block_balance(c, m, size(len(c)), damping=0.0))

    def low(rank: int) -> Callable[[Tensor, Tensor], Transform]:
        return lambda c, m: _then(
            _diagonal(c, m), c, m, lambda c, m: low_rank_balance(c, m, min(rank, len(c)), damping=0.0)
        )

    def both(rank: int) -> Callable[[Tensor, Tensor], Transform]:
        return lambda c, m: _then(low(rank)(c, m), c, m, lambda c, m: block_balance(c, m, size(len(c)), damping=0.0))

    found = [
        Structure("none", lambda n: 0, lambda c, m: Identity(len(c))),
        Structure("diagonal", lambda n: 0, _diagonal),
        Structure(f"blocks up to {block}", size, blocks),
    ]
    found += [Structure(f"rank {rank}", lambda n, r=rank: 2 * r, low(rank)) for rank in ranks]  # type: ignore[misc]
    found += [
        Structure(f"rank {rank}, then blocks", lambda n, r=rank: 2 * r + size(n), both(rank))  # type: ignore[misc]
        for rank in ranks
    ]
    return [*found, Structure("dense", float, lambda c, m: dense_balance(c, m, damping=0.0))]


def _diagonal(c: Tensor, m: Tensor) -> Transform:
    return Diagonal(1 / diagonal_balance(c.diagonal().sqrt(), m.diagonal().sqrt()))


def _then(first: Transform, c: Tensor, m: Tensor, build: Callable[[Tensor, Tensor], Transform]) -> Transform:
    """`first`, and behind it what `build` makes of the moments that it leaves."""
    left = first(first(c).T.contiguous())
    right = first.inverse_transpose(first.inverse_transpose(m).T.contiguous())
    return Compose([first, build(left, right)])


@dataclass(frozen=True)
class Observer(Method):
    """Measures J of structures at every site of a full-precision model and transforms nothing.

    Attributes:
        layers: those that are measured; empty for all.
        found: (layer, site) -> J over the least J, by name of the structure.
    """

    name: str = "observer"
    compared: Sequence[Structure] = field(default_factory=structures)
    layers: Sequence[int] = ()
    found: dict[tuple[int, str], dict[str, float]] = field(default_factory=dict)
    fold_norms: ClassVar[bool] = True

    @property
    def second_moments(self) -> Sequence[str]:
        """Of every site."""
        return SITES

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """None; J is measured by the way."""
        for site in SITES if not self.layers or layer.index in self.layers else ():
            moment, weights = layer.statistics[site].second_moment, layer.weights[site]
            assert moment is not None, "the pipeline gathers what second_moments names"
            c, m = normalized(moment), normalized(weights.T @ weights)
            bound = least(c, m)
            self.found[layer.index, site] = {
                each.name: criterion(each.build(c, m), c, m) / bound for each in self.compared
            }
        return {}
