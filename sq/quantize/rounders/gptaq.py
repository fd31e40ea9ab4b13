"""GPTAQ: GPTQ that also makes up for what the inputs of the quantized stream have lost.

Li et al. (2504.02692), "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.qtensor import QTensor
from sq.quantize.rounders.gptq import Gptq
from sq.quantize.rounders.rounder import Need, RoundingStatistics


@dataclass(frozen=True)
class Gptaq(Gptq):
    """GPTQ on |q X - w X'|^2 instead of |q X - w X|^2, the correction shrunk by alpha.

    X are a site's inputs in the quantized stream, X' those of the full-precision one. With D = sum (x' - x)^T x and U
    as in `gptq`: P = alpha triu(D U^T, 1) U, and column j moves later ones by w_j P_jk besides its rounding error.

    Attributes:
        alpha: share of the correction, from 0 (GPTQ) to 1. The whole of it overfits the calibration tokens.
    """

    alpha: float = 0.25
    needs: ClassVar[frozenset[Need]] = frozenset({"hessian", "mismatch"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise QuantizationError(f"alpha={self.alpha}; use a number from 0 (GPTQ) to 1 (the whole correction)")

    def round(self, weights: Sequence[Tensor], statistics: RoundingStatistics) -> list[QTensor]:
        """See `gptq`."""
        assert statistics.mismatch is not None, "the pipeline gathers what `needs` names"
        return self._walk(weights, statistics, self.alpha * statistics.mismatch)
