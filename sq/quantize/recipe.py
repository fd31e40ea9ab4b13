"""How the numbers of a run are rounded: weights, activations, and queries, keys and values inside attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.weight import WeightQuantizer
from sq.quantize.rounders.rounder import WeightRounder

Propagate = Literal["full_precision", "quantized_weights", "quantized"]


@dataclass(frozen=True)
class Recipe:
    """All quantizers of a run; None leaves that tensor in 16 bits.

    Attributes:
        weights: rounds those of the linears.
        activations: of every site, per token.
        queries, keys, values: inside attention, after RoPE; each head's features are a group of their own.
        propagate: what the next layer is calibrated on: outputs of this one in "full_precision", with
            "quantized_weights", or "quantized" altogether, activations too.
        site_groups: site -> features of a token that share a scale there, in place of `activations`' own.
        site_clips: the pipeline chooses one clip for each site on calibration tokens (sq.quantize.site_clips), and
            `activations` has the clip that methods train with.

    Raises:
        QuantizationError: another `propagate`.
    """

    weights: WeightRounder | None = None
    activations: ActivationQuantizer | None = None
    queries: ActivationQuantizer | None = None
    keys: ActivationQuantizer | None = None
    values: ActivationQuantizer | None = None
    propagate: Propagate = "quantized_weights"
    site_clips: bool = False
    site_groups: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.propagate not in get_args(Propagate):
            raise QuantizationError(f"propagate is {self.propagate!r}; use one of {', '.join(get_args(Propagate))}")

    def activations_at(self, site: str) -> ActivationQuantizer | None:
        """The quantizer of one site's activations, without the clip that a plan may have for it."""
        group = self.site_groups.get(site)
        return self.activations if self.activations is None or group is None else self.activations.with_group(group)

    @property
    def weight_quantizer(self) -> WeightQuantizer | None:
        """Format and clip of the weights."""
        return None if self.weights is None else self.weights.quantizer

    @property
    def has_static_scale(self) -> bool:
        """Whether activations have a second scale that calibration tokens fix."""
        return self.activations is not None and self.activations.format.static

    @property
    def quantizes_scores(self) -> bool:
        """Whether the product of queries and keys sees rounded numbers, so that a transform of keys matters."""
        return self.queries is not None or self.keys is not None

    @property
    def quantizes_attention(self) -> bool:
        """Whether anything inside attention is rounded."""
        return self.quantizes_scores or self.values is not None
