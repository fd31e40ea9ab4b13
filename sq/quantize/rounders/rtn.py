"""Round to nearest."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sq.formats.weight import QuantizedWeight, WeightQuantizer


def rtn(w: Tensor, quantizer: WeightQuantizer) -> QuantizedWeight:
    """Every entry of w (d_out, d_in) goes to the nearest level of its grid.

    Raises:
        QuantizationError: see WeightQuantizer.
    """
    return quantizer.quantize(w)


@dataclass(frozen=True)
class Rtn:
    """Round to nearest."""

    quantizer: WeightQuantizer
