"""MR-GPTQ (arXiv 2509.23202): a Hadamard inside each scale group, for FP4 formats; rounding is left to `weights`.

A rotation wider than the group spreads one group's outlier over many scales, which a format with a scale for 16 or 32
neighbours would have kept in one. Sites, defaults and differences from the released code: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sq.errors import QuantizationError
from sq.formats.format import Format
from sq.models.families import SITES
from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method
from sq.rotation import Kronecker, hadamard_matrix, has_hadamard


@dataclass(frozen=True)
class MrGptq(Method):
    """I (x) H_k at every site, online; ValueError for a block without a Hadamard matrix.

    Args:
        block: k; None takes the group of the activations' format: 16 for NVFP4, 32 for MXFP4.
    """

    name: str = "mrgptq"
    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None and not (self.block >= 1 and has_hadamard(self.block)):
            raise ValueError(f"block={self.block} has no Hadamard matrix; use 16, 32 or another power of two")

    @property
    def samples_windows(self) -> bool:
        """Nothing of the statistics is read."""
        return True

    def obstacle(self, weights: Format | None, activations: Format | None) -> str | None:
        """Without `block` the activations need a format with groups."""
        if self.block is None and (activations is None or activations.group is None):
            name = "16 bits" if activations is None else f"{activations.name}, one scale a token"
            return f"its block is the group of the activations' format, which is {name}; set method.block=16 or 32"
        return None

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """The same at all sites."""
        k, widths = self._block(layer), {site: layer.dimensions.width(site) for site in SITES}
        if wrong := [f"{site} has {n}" for site, n in widths.items() if n % k]:
            raise QuantizationError(f"layer {layer.index}: {', '.join(wrong)} features, no multiple of the block {k}")
        rotation = hadamard_matrix(k) / k**0.5
        return {site: SiteTransform(online=Kronecker(n // k, rotation)) for site, n in widths.items()}

    def _block(self, layer: LayerView) -> int:
        if self.block is not None:
            return self.block
        quantizer = None if layer.block is None else layer.block.recipe.activations
        group = None if quantizer is None else quantizer.format.group
        if group is None:
            raise QuantizationError(f"layer {layer.index}: the activations have no groups; set method.block")
        return group
