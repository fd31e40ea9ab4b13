"""QuaRot (Ashkboos et al., arXiv 2404.00456): Hadamard rotations of every activation, blind to the data.

Sites, defaults and differences from the released code: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from sq.models.families import ModelDimensions
from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method
from sq.rotation import Kronecker, PerHead, Transform, blind_rotation, has_hadamard
from sq.rotation.shared_block import width_obstacle

Kind = Literal["hadamard", "orthogonal", "none"]
CrossHeadKind = Literal["auto", "hadamard", "orthogonal", "none"]
PLACES = ("residual", "head", "cross_head", "down", "keys")


class CrossHead(Kronecker):
    """R (x) I over heads: x viewed (..., heads, head_dim) becomes R^T X."""

    def __init__(self, rotation: Transform, head_dim: int) -> None:
        super().__init__(rotation.matrix(), head_dim)
        self._cost = rotation.macs() * head_dim

    def macs(self) -> int:
        """Of R's own algorithm for each of the head_dim features: butterflies for a Hadamard."""
        return self._cost


@dataclass(frozen=True)
class QuaRot(Method):
    """Hadamard rotations, folded where they fold; ValueError for a rotation other than these.

    Args:
        residual: rotation of the residual stream, folded: "hadamard" (random signs), "orthogonal" (Haar) or "none".
        head: rotation of each head's values, folded. The same choices, without signs.
        cross_head: rotation across query heads in front of o, online. "auto" is a Hadamard where their number has one,
            and nothing elsewhere, which the row says.
        down: rotation in front of down, online; "orthogonal" costs n^2 there.
        keys: rotation of each head's keys and queries after RoPE, online, where keys or queries are quantized.
        seed: of signs and Haar rotations.
    """

    name: str = "quarot"
    residual: Kind = "hadamard"
    head: Kind = "hadamard"
    cross_head: CrossHeadKind = "auto"
    down: Kind = "hadamard"
    keys: Kind = "hadamard"
    seed: int = 0
    fold_norms: ClassVar[bool] = True

    def __post_init__(self) -> None:
        kinds = {p: get_args(CrossHeadKind if p == "cross_head" else Kind) for p in PLACES}
        wrong = [f"{p}={getattr(self, p)!r}" for p in PLACES if getattr(self, p) not in kinds[p]]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}; allowed: {', '.join(get_args(Kind))}, and auto for cross_head")

    @property
    def samples_windows(self) -> bool:
        """Nothing of the statistics is read."""
        return True

    def resolved(self, dimensions: ModelDimensions) -> Mapping[str, str]:
        """`cross_head` where "auto" found no Hadamard matrix for the number of heads."""
        left_out = self.cross_head == "auto" and not has_hadamard(dimensions.heads)
        return {"cross_head": "none"} if left_out else {}

    def export_obstacle(self, dimensions: ModelDimensions | None = None) -> str | None:
        """A rotation across query heads has no place, and not every one at `down` has."""
        if self.cross_head != "none":
            return "its rotation across query heads in front of `o` has no place there; set method.cross_head=none"
        if dimensions is None or self.down == "none":
            return None
        reason = width_obstacle(self.down, dimensions.intermediate)
        return reason and f"{reason}, in front of `down`; set method.down=none, or take method=singlequant_export"

    def residual_rotation(
        self, samples: Mapping[str, Sequence[Tensor]], dimensions: ModelDimensions
    ) -> Transform | None:
        """Of size hidden, from the seed alone; the samples are not read."""
        return self._rotation("residual", dimensions.hidden, self.seed, "the residual stream: a hidden size of")

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """Head rotation and cross-head rotation at o, a full one at down."""
        dimensions, seed, where = layer.dimensions, self.seed + 1 + len(PLACES) * layer.index, f"layer {layer.index}"
        head = self._rotation("head", dimensions.head_dim, seed, f"{where}, o: a head_dim of")
        cross = self._rotation("cross_head", dimensions.heads, seed + 1, f"{where}, o: a number of query heads of")
        down = self._rotation("down", dimensions.intermediate, seed + 2, f"{where}, down: an intermediate size of")
        folded = None if head is None else PerHead(head.matrix().expand(dimensions.kv_heads, -1, -1))
        online = None if cross is None else CrossHead(cross, dimensions.head_dim)
        return {"o": SiteTransform(folded, online), "down": SiteTransform(online=down)}

    def key_transform(self, layer: LayerView) -> Transform | None:
        """The same for every head, keys and queries."""
        dimensions, seed = layer.dimensions, self.seed + 4 + len(PLACES) * layer.index
        return self._rotation("keys", dimensions.head_dim, seed, f"layer {layer.index}, keys: a head_dim of")

    def _rotation(self, place: str, n: int, seed: int, what: str) -> Transform | None:
        kind = getattr(self, place)
        if kind == "none" or (kind == "auto" and not has_hadamard(n)):
            return None
        kind = "hadamard" if kind == "auto" else kind
        signs, also = place == "residual", f" or method.{place}=none"
        return blind_rotation(kind, n, seed, signs=signs, what=what, option=f"method.{place}", also=also)
