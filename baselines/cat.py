"""CAT (arXiv 2603.04359), untrained: in each block of channels the matrix that gives activations and weights one second
moment, then a Hadamard.

    M = (S_w # S_x^-1)^(1/2),    A # B = A^(1/2) (A^(-1/2) B A^(-1/2))^(1/2) A^(1/2)

S_x and S_w are second moments of activations and weights, # the geometric mean. x takes M and w takes M^-1, and then
M S_x M = M^-1 S_w M^-1. Sites, defaults and differences from the paper: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sq.errors import CalibrationError, QuantizationError
from sq.models.families import SITES, ModelDimensions
from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method, below_least
from sq.rotation import (
    Compose,
    Hadamard,
    OfMatrix,
    OfRows,
    PerHead,
    SecondMoment,
    as_moment,
    has_hadamard,
    random_signs,
)
from sq.rotation.transform import invert


@dataclass(frozen=True)
class Cat(Method):
    """Block geometric-mean balance and a Hadamard, both online at every site; ValueError for an option out of range.

    Args:
        block: most channels of a block; a site takes the largest divisor of its features up to it.
        damping: share of each channel's own second moment that is added to it; it bounds the stretch.
        seed: of the Hadamard's signs.
    """

    name: str = "cat"
    block: int = 128
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if wrong := below_least(self, {"block": 1, "damping": 0}):
            raise ValueError(", ".join(wrong))

    def export_obstacle(self, dimensions: ModelDimensions | None = None) -> str | None:
        """Each site of each layer has blocks of its own."""
        return "its blocks are online at every site, and no two are the same; take method=singlequant_export"

    @property
    def second_moments(self) -> Sequence[str]:
        """Of every site."""
        return SITES

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """Blocks, then a Hadamard of the whole site."""
        return {site: self._site(layer, site) for site in SITES}

    def _site(self, layer: LayerView, site: str) -> SiteTransform:
        where, moment, weights = (
            f"layer {layer.index}, {site}",
            layer.statistics[site].second_moment,
            layer.weights[site],
        )
        assert moment is not None, "the pipeline gathers what second_moments names"
        n = weights.shape[1]
        block = max(size for size in range(1, min(self.block, n) + 1) if n % size == 0)
        blocks = balanced_blocks(OfMatrix(moment), OfRows(weights), block, self.damping, where)
        seed = self.seed + 1 + len(SITES) * layer.index + SITES.index(site)
        if not has_hadamard(n):
            raise QuantizationError(
                f"{where}: no Hadamard matrix of order {n} exists or is known here, and CAT ends in one; take "
                "method=singlequant method.mixing=block, or another method"
            )
        hadamard = Hadamard(n, random_signs(n, seed)).to(blocks.device)
        return SiteTransform(online=Compose([PerHead(blocks, orthogonal=False), hadamard]))


def balanced_blocks(
    s_x: Tensor | SecondMoment, s_w: Tensor | SecondMoment, block: int, damping: float, where: str = "cat"
) -> Tensor:
    """M of each block, (n / block, block, block), float64, from second moments, damped.

    CalibrationError is raised for moments that are not positive definite then. Channels that calibration never saw
    alive, or that no weight reads, are given the mean of the others.
    """
    cuts = []
    for moment in map(as_moment, (s_x, s_w)):
        exact = moment.blocks(block) / moment.mean()
        diagonal = exact.diagonal(dim1=-2, dim2=-1)
        diagonal.add_(torch.where(diagonal > 0, damping * diagonal, torch.ones_like(diagonal)))
        cuts.append(exact)
    a, b = cuts
    values = torch.linalg.eigvalsh(torch.cat(cuts))
    if not bool((values > 0).all()):
        raise CalibrationError(
            f"{where}: a second moment is not positive definite or carries NaN; use more tokens or method.damping"
        )
    root, inverse_root = _power(b, 0.5), _power(b, -0.5)
    mean = root @ _power(inverse_root @ invert(where, a) @ inverse_root, 0.5) @ root  # S_w # S_x^-1
    return _power(mean, 0.5)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Of symmetric positive definite matrices (..., n, n)."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    powered: Tensor = vectors * values.pow(exponent).unsqueeze(-2) @ vectors.mT
    return powered
