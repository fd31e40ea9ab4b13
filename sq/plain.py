"""The two yardsticks: full precision, and plain round-to-nearest without any transform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sq.method import LayerView
from sq.models.families import Geometry
from sq.rotation.transform import Transform
from sq.site import SiteTransform


@dataclass(frozen=True)
class NoTransform:
    """Weights and activations are quantized as they are, norm gains unfolded.

    Args:
        name: as printed in tables.
        quantizes: False leaves the model in full precision.
    """

    name: str = "rtn"
    quantizes: bool = True
    fold_norms: bool = False
    needs_residual: bool = False
    needs_second_moment: Sequence[str] = ()

    def residual_rotation(self, samples: Mapping[str, Sequence[Tensor]], geometry: Geometry) -> Transform | None:
        """No rotation."""
        return None

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """No transforms."""
        return {}


class RoundToNearest(NoTransform):
    """Plain quantization: no transform at any site."""


class FullPrecision(NoTransform):
    """The unquantized model, in the dtype it is run in."""

    def __init__(self, name: str = "fp16") -> None:
        super().__init__(name=name, quantizes=False)
