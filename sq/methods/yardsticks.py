"""The two references of every comparison: full precision, and round-to-nearest without any transform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method


@dataclass(frozen=True)
class RoundToNearest(Method):
    """Weights and activations are quantized as they are, norm gains unfolded."""

    name: str = "rtn"

    @property
    def samples_windows(self) -> bool:
        """Nothing of the statistics is read."""
        return True

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """No transforms."""
        return {}


@dataclass(frozen=True)
class FullPrecision(RoundToNearest):
    """The unquantized model, in the dtype it is run in."""

    name: str = "fp16"
    quantizes: ClassVar[bool] = False
