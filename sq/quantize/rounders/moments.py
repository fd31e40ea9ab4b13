"""The statistics of one site that a rounder needs, summed over tokens as they come by."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from sq.errors import CalibrationError
from sq.formats.activation import ActivationQuantizer
from sq.quantize.rounders.hessian import HessianAccumulator
from sq.quantize.rounders.rounder import HeldOut, Need, RoundingStatistics

_HELD_OUT = 4  # one token in so many, the last ones


class SiteMoments:
    """Running sums of what `RoundingStatistics` holds.

    Args:
        n: features of the site.
        needs: of the rounder.
        total: tokens that will come, N; the last quarter is held out where that is needed.
        quantizer: x passes through it before anything is summed; x' does not. None: x stays.
    """

    def __init__(
        self,
        n: int,
        needs: Collection[Need],
        total: int,
        *,
        quantizer: ActivationQuantizer | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.n, self.quantizer = n, quantizer
        self.mismatched = "mismatch" in needs
        self._left = total - total // _HELD_OUT if "held_out" in needs else total  # until tokens are held out
        self._fit = _Part(n, self.mismatched, device)
        self._held = _Part(n, self.mismatched, device) if "held_out" in needs else None

    @torch.no_grad()
    def update(self, x: Tensor, full: Tensor | None = None) -> None:
        """Add tokens x (..., n) and, where the mismatch is needed, the same of the full-precision stream.

        Raises:
            CalibrationError: n is another, or the two streams do not have the same tokens.
        """
        if self.mismatched and (full is None or full.shape != x.shape):
            got = "none" if full is None else str(tuple(full.shape))
            streams = f"the quantized stream has tokens {tuple(x.shape)}, the full-precision one {got}"
            raise CalibrationError(f"{streams}; give both of one batch")
        x = x if self.quantizer is None else self.quantizer(x)
        rows = x.flatten(0, -2)
        difference = (full.flatten(0, -2) - rows) if self.mismatched and full is not None else None
        if self._held is None:
            self._fit.update(rows, difference)
            return
        cut = min(len(rows), self._left)
        self._left -= cut
        for part, own in ((self._fit, slice(0, cut)), (self._held, slice(cut, None))):
            if len(rows[own]):
                part.update(rows[own], None if difference is None else difference[own])

    def statistics(self, name: str) -> RoundingStatistics:
        """What was summed; CalibrationError where no token came, or none was left to be held out."""
        if self._held is None:
            return RoundingStatistics(name, self._fit.hessian.value, self._fit.cross)
        if not self._held.hessian.tokens:
            few = f"{self._fit.hessian.tokens} calibration tokens leave none to be held out"
            raise CalibrationError(f"{name}: {few}; use {_HELD_OUT} or more")
        fit, held = self._fit, self._held
        share = held.hessian.tokens / (held.hessian.tokens + fit.hessian.tokens)
        hessian = (1 - share) * fit.hessian.value + share * held.hessian.value
        if fit.cross is None or held.cross is None:
            raise CalibrationError(f"{name}: tokens are held out for the mismatch; a rounder that needs one needs both")
        mismatch = (1 - share) * fit.cross + share * held.cross
        return RoundingStatistics(name, hessian, mismatch, HeldOut(held.hessian.value, held.cross, share))


class _Part:
    """The sums over a part of the tokens."""

    def __init__(self, n: int, mismatched: bool, device: torch.device | str | None) -> None:
        self.hessian = HessianAccumulator(n, device)
        self._cross = HessianAccumulator(n, device) if mismatched else None

    def update(self, x: Tensor, difference: Tensor | None) -> None:
        self.hessian.update(x)
        if self._cross is not None:
            self._cross.update(x, difference)

    @property
    def cross(self) -> Tensor | None:
        return None if self._cross is None else self._cross.value
