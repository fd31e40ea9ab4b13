"""SmoothQuant (Xiao et al., arXiv 2211.10438): move the activations' scale of each channel into the weights.

    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha),    x_j / s_j,  W_j s_j

max|W_j| is over the rows of all linears that read the site (q, k, v; gate, up). Sites, defaults and differences from
the released code: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method
from sq.rotation import Diagonal, diagonal_balance

SMOOTHED = ("qkv", "gate_up")


@dataclass(frozen=True)
class SmoothQuant(Method):
    """Migrate activation outliers into weights behind each norm; ValueError for an alpha outside [0, 1].

    Args:
        alpha: migration strength: 0 balances the weights alone, 1 the activations alone.
    """

    name: str = "smoothquant"
    alpha: float = 0.85

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}; allowed is 0 (weights alone) to 1 (activations alone)")

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """diag(1/s) behind both norms."""
        transforms = {}
        for site in SMOOTHED:
            s = diagonal_balance(layer.statistics[site].peak, layer.weights[site].abs().amax(0), self.alpha)
            transforms[site] = SiteTransform(folded=Diagonal(1 / s))
        return transforms
