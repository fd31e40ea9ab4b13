"""SmoothQuant (Xiao et al., arXiv 2211.10438): move the activations' scale of each channel into the weights.

    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha),    x_j / s_j,  W_j s_j

max|W_j| is over the rows of all linears that read the site (q, k, v; gate, up).

| site         | folded                       | online  |
|--------------|------------------------------|---------|
| qkv, gate_up | diag(1/s) in the norm's gain | nothing |
| o, down      | nothing, as in the paper     | nothing |

Defaults: alpha = 0.85, the authors' value for Llama-2-7B and 13B and for Llama-3 (README of the released code; 0.9 for
70B, 0.8 for Mistral-7B), published for W8A8. Later papers' W4A4 tables use 0.5, the default of the released function:
on the embedded model that spends more in the weights than it saves in the activations, and is no better than rtn.

Differs from the released code:
- s comes from `diagonal_balance`, which divides it by its geometric mean. A factor common to all channels changes no
  code of a per-token, per-output-channel quantizer; without it a small s could overflow gains in float16.
- A channel that calibration never saw alive keeps s = 1; there s = 1e-5, which multiplies what comes later by 100,000.
- Its evaluation also rounds what q, k and v put out; here the run says so (`bits=w4a4q4kv4`), for every method.
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
    """Migrate activation outliers into weights behind each norm.

    Args:
        name: as printed in tables.
        alpha: migration strength in [0, 1]: 0 balances the weights alone, 1 the activations alone.

    Raises:
        ValueError: alpha outside [0, 1].
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
