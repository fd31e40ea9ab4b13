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
        self._left = total - total // _HELD_OUT  # until tokens are held out
        # Over all tokens, held out or not: its sums are those of a rounder that holds none out, to the last bit.
        self._whole = _Part(n, self.mismatched, device)
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
        self._whole.update(rows, difference)
        cut = min(len(rows), self._left)
        self._left -= cut
        if self._held is not None and cut < len(rows):
            self._held.update(rows[cut:], None if difference is None else difference[cut:])

    def statistics(self, name: str) -> RoundingStatistics:
        """What was summed; CalibrationError where no token came, or none was left to be held out."""
        whole, held = self._whole, self._held
        if held is None:
            return RoundingStatistics(name, whole.hessian.value, whole.cross)
        if not held.hessian.tokens:
            few = f"{whole.hessian.tokens} calibration tokens leave none to be held out"
            raise CalibrationError(f"{name}: {few}; use {_HELD_OUT} or more")
        if held.cross is None:
            raise CalibrationError(f"{name}: tokens are held out for the mismatch; a rounder that needs one needs both")
        share = held.hessian.tokens / whole.hessian.tokens
        part = HeldOut(held.hessian.value, held.cross, share)
        return RoundingStatistics(name, whole.hessian.value, whole.cross, part)


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
