"""Qronos: GPTQ of weights that were first moved to make up for what the inputs of the quantized stream have lost.

Zhang et al. (2505.11695), "Qronos: Correcting the Past by Shaping the Future in Post-Training Quantization". Its walk
over the columns is written there as one; here it is the equal form of two steps, a shift of all weights and GPTQ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.qtensor import QTensor
from sq.quantize.rounders.gptq import Gptq, check_mismatch
from sq.quantize.rounders.hessian import inverse_factor, without_dead
from sq.quantize.rounders.rounder import HeldOut, Need, RoundingStatistics


@dataclass(frozen=True)
class Qronos(Gptq):
    """GPTQ of w* = w (I + s K), K = D (H + ridge mean(diag H) I)^-1, D = sum (x' - x)^T x, in the scale of H.

    I + K = (G + l I) (H + l I)^-1 with G = sum x'^T x is the least-squares solution of |w X' - w* X|^2, X a site's
    inputs in the quantized stream and X' in the full-precision one. The whole of it overfits the calibration tokens, so
    s is chosen on tokens that K was not made from: see `chosen_shrinkage`.

    Attributes:
        ridge: share of the mean diagonal that is added to H in K.
        shrinkage: s from 0 (GPTQ) to 1, or "search": one for each site.
    """

    ridge: float = 0.1
    shrinkage: float | Literal["search"] = "search"
    needs: ClassVar[frozenset[Need]] = frozenset({"hessian", "mismatch", "held_out"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ridge >= 0:
            raise QuantizationError(f"ridge={self.ridge}; use 0 or more")
        if self.shrinkage != "search" and not (isinstance(self.shrinkage, (int, float)) and 0 <= self.shrinkage <= 1):
            raise QuantizationError(f'shrinkage={self.shrinkage}; use a number from 0 (GPTQ) to 1, or "search"')

    def round(self, weights: Sequence[Tensor], statistics: RoundingStatistics) -> list[QTensor]:
        """See `gptq`; `statistics.report` gets the shrinkage."""
        hessian, mismatch, held_out = statistics.hessian, statistics.mismatch, statistics.held_out
        assert hessian is not None, "the pipeline gathers what `needs` names"
        assert mismatch is not None, "the pipeline gathers what `needs` names"
        check_mismatch(mismatch, hessian, statistics.name)
        s = self.shrinkage
        if isinstance(s, str):
            assert held_out is not None, "the pipeline gathers what `needs` names"
            h, d = (
                (whole - held_out.share * held) / (1 - held_out.share)
                for whole, held in ((hessian, held_out.hessian), (mismatch, held_out.mismatch))
            )
            s = chosen_shrinkage(weights, self._shift(h, d, statistics.name), held_out)
        statistics.report["shrinkage"] = float(s)
        if s == 0:
            return self._walk(weights, statistics)
        shift = s * self._shift(hessian, mismatch, statistics.name)
        wide = [weight.to(shift.dtype) for weight in weights]
        return self._walk([w + w @ shift for w in wide], statistics)

    def _shift(self, hessian: Tensor, mismatch: Tensor, name: str) -> Tensor:
        """K (n, n), in the dtype of the mismatch."""
        live, _ = without_dead(hessian)
        factor = inverse_factor(live, self.ridge, name=f"{name}, shift").to(mismatch.dtype)
        return mismatch @ factor.T @ factor


def chosen_shrinkage(weights: Sequence[Tensor], shift: Tensor, held_out: HeldOut) -> float:
    """The s in [0, 1] of least |w X' - w (I + s K) X|^2 over held-out tokens, in closed form.

    With a = w K the error is a constant - 2 s tr(w D a^T) + s^2 tr(a H a^T): s is the ratio of the two traces, clamped;
    0 where K does nothing. Rounding adds about the same error for every s and is left out.

    Args:
        weights: (d_out, n) each, of the linears of a site; their errors are added up.
        shift: K (n, n), made from other tokens.
    """
    agreement = power = 0.0
    for weight in weights:
        w = weight.to(shift.dtype)
        moved = w @ shift
        agreement += float(((w @ held_out.mismatch) * moved).sum())
        power += float(((moved @ held_out.hessian) * moved).sum())
    return min(1.0, max(0.0, agreement / power)) if power > 0 else 0.0
