"""What a quantization method must say: its transforms at each site. The pipeline does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from sq.models.families import Geometry
from sq.rotation.transform import Transform
from sq.site import SiteTransform


@dataclass(frozen=True)
class SiteStatistics:
    """What calibration saw at one site of one layer.

    Attributes:
        tokens: an even sample of the tokens, (T, n) float32.
        rms: root mean square of each channel over all tokens, (n,) float32.
        peak: largest magnitude of each channel over all tokens, (n,) float32.
        second_moment: mean of x^T x over all tokens, (n, n), or None when nobody asked for it.
        count: number of tokens seen.
    """

    tokens: Tensor
    rms: Tensor
    peak: Tensor
    second_moment: Tensor | None
    count: int


@dataclass(frozen=True)
class LayerView:
    """One decoder layer as a method sees it: statistics and weights by site.

    Attributes:
        index: of the layer.
        statistics: site -> what calibration saw at the site's input.
        weights: site -> weights of its linears stacked, (sum of d_out, n) float32.
        geometry: sizes.
    """

    index: int
    statistics: Mapping[str, SiteStatistics]
    weights: Mapping[str, Tensor]
    geometry: Geometry


@runtime_checkable
class Method(Protocol):
    """A quantization method. Implementations take typed arguments and see no config object.

    Attributes:
        name: as printed in tables.
        fold_norms: fold the norm gains into the weights before anything is captured.
        quantizes: False for a method that leaves the model in full precision.
        needs_residual: ask for `residual_rotation` before the layers are visited (one more calibration forward).
        needs_second_moment: sites whose second moment the method reads.
    """

    name: str
    fold_norms: bool
    quantizes: bool
    needs_residual: bool
    needs_second_moment: Sequence[str]

    def residual_rotation(self, samples: Mapping[str, Sequence[Tensor]], geometry: Geometry) -> Transform | None:
        """The rotation of the residual stream, from samples of normalized tokens: site -> one (T, hidden) a layer."""
        ...

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """The transforms of a layer by site; sites left out are not transformed."""
        ...
