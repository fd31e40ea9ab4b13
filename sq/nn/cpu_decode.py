"""A site and the packed linears that read it as one call, for a few bfloat16 tokens on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from sq.formats.activation import ActivationQuantizer
from sq.kernels.int4_matmul import CpuWeight
from sq.kernels.site_rows.decode_step import DecodeStep
from sq.nn.unchanged import Unchanged

if TYPE_CHECKING:
    from sq.nn.linear import PackedLinear
    from sq.nn.site_input import SiteInput


class CpuDecode:
    """y = quantize(f(x) T) W^T + b of linears of one site, (..., sum of d_out)."""

    def __init__(self, step: DecodeStep, parts: Sequence[Unchanged]) -> None:
        self._step, self._parts = step, parts

    def output(self, x: Tensor, up: Tensor | None) -> Tensor | None:
        """Of x and up (..., n); None where this is not for them, or no longer for these linears."""
        if not self._step.takes(x, up):
            return None
        for part in self._parts:
            if not part.holds():
                return None
        return self._step.product(x, up)


def decode_of(inputs: SiteInput, linears: Sequence[PackedLinear], weight: CpuWeight, x: Tensor) -> CpuDecode | None:
    """For the joint weight of the linears, and activations like x; None where no single call computes it."""
    site = inputs.on_cpu(x, None)
    quantizer = inputs.quantizer
    if site is None or not site.is_one_pass or inputs.readers > 1 or not isinstance(quantizer, ActivationQuantizer):
        return None
    own = Unchanged()
    for linear in linears:
        own.watch(linear, "weight_packed", "weight_scale", "weight_zero", "bias")
    assert quantizer.format.scheme is not None
    return CpuDecode(DecodeStep(site.rows, weight, quantizer.format.scheme), (site.unchanged, own))
