"""Round to nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sq.formats.qtensor import QTensor
from sq.quantize.rounders.rounder import RoundingStatistics, WeightRounder


@dataclass(frozen=True)
class Rtn(WeightRounder):
    """Every entry goes to the nearest level."""

    def round(self, weights: Sequence[Tensor], statistics: RoundingStatistics) -> list[QTensor]:
        """Each weight by itself; errors are those of `WeightQuantizer`."""
        return [self.quantizer.quantize(weight) for weight in weights]
