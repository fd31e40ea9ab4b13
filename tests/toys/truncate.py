"""A toy rounder: weights are cut towards zero instead of rounded. This file is all that a rounder needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sq.formats.qtensor import QTensor
from sq.quantize.rounders.rounder import RoundingStatistics, WeightRounder


@dataclass(frozen=True)
class Truncate(WeightRounder):
    """Codes nearest to the weights, moved one step towards zero where they lie beyond them.

    Attributes:
        share: of the weight that is rounded; an option of the rounder, for the test.
    """

    share: float = 1.0

    def round(self, weights: Sequence[Tensor], statistics: RoundingStatistics) -> list[QTensor]:
        """Each weight by itself."""
        return [self._truncated(self.share * weight) for weight in weights]

    def _truncated(self, weight: Tensor) -> QTensor:
        nearest = self.quantizer.quantize(weight)
        beyond = nearest.dequantize().abs() > weight.abs() * (1 + 1e-6)  # the largest is its own code, to float32
        return replace(nearest, codes=nearest.codes - beyond * nearest.codes.sign())
