"""The packed linears of one site as one product: q, k and v; gate and up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sq.formats.activation import ActivationQuantizer
from sq.kernels.coded import Coded
from sq.kernels.compiled import Prepared
from sq.kernels.int4_matmul import CpuWeight
from sq.nn.cpu_decode import CpuDecode, decode_of
from sq.nn.linear import PackedLinear, int4_product, kernel_takes
from sq.nn.site_input import scheme_of


class PackedGroup:
    """Computes all linears of a site when the first of them is called, and hands each its columns.

    One launch in the place of two or three: at a few tokens a linear of 4 bits takes microseconds, about as long as
    the gap between launches. The codes lie in one tensor, of which each linear holds a view of its rows; moving or
    loading the linears parts them, and the next call joins them again.

    Args:
        linears: of one site, in the order in which they are called first.
    """

    def __init__(self, linears: Sequence[PackedLinear]) -> None:
        self.linears = tuple(linears)
        self._joined: tuple[Coded, Tensor | None] | None = None
        self._prepared: Prepared[CpuWeight] = Prepared()
        self._decode: Prepared[CpuDecode] = Prepared()
        self._sizes = [linear.out_features for linear in self.linears]
        self._kept: tuple[Tensor, dict[PackedLinear, Tensor]] | None = None

    def output(self, linear: PackedLinear, x: Tensor) -> Tensor:
        """The linear's (..., d_out), dtype of x: columns of the joint product, which is taken now."""
        parts = self._product(x).split(self._sizes, dim=-1)
        results = dict(zip(self.linears, parts, strict=True))
        y: Tensor = results.pop(linear)
        self._kept = (x, results) if results else None
        return y

    def kept(self, linear: PackedLinear, x: Tensor) -> Tensor | None:
        """What the joint product of this very x left for the linear, once; None where there is none."""
        if self._kept is None or self._kept[0] is not x:
            return None
        results = self._kept[1]
        y = results.pop(linear, None)
        if not results:
            self._kept = None
        return y

    def forget(self) -> None:
        """The linears' tensors are about to change: join them again at the next call."""
        self._joined = self._kept = self._prepared.value = self._decode.value = None

    def _product(self, x: Tensor) -> Tensor:
        if (decode := self._decode.value) is not None and (y := decode.output(x, None)) is not None:
            return y
        first = self.linears[0]
        activations = first.inputs.packed(x)
        if self._joined is None or not self._views(self._joined[0].codes):
            self._joined = self._join()
        weight, bias = self._joined
        if x.device.type == "cpu":
            held = self._prepared.value
            if held is None or not held.is_of((weight.codes, weight.scale, weight.zero, bias)):
                held = self._prepared.value = CpuWeight(weight, scheme_of(first.format), bias)
            if held.takes(activations, x.dtype):
                assert isinstance(first.inputs.quantizer, ActivationQuantizer)
                self._decode.value = decode_of(first.inputs, self.linears, held, x)
                return held.product(activations, scheme_of(first.inputs.quantizer.format), x.dtype)
        return int4_product(activations, weight, first, bias, x.dtype)

    def _views(self, codes: Tensor) -> bool:
        """Whether each linear's codes are still its rows of `codes`."""
        row = 0
        for linear in self.linears:
            own = linear.weight_packed
            if own.device != codes.device or own.data_ptr() != codes.data_ptr() + row * codes.stride(0):
                return False
            row += len(own)
        return True

    @torch.no_grad()
    def _join(self) -> tuple[Coded, Tensor | None]:
        weights = [linear.packed_weight() for linear in self.linears]
        codes = torch.cat([weight.codes for weight in weights])
        scale = torch.cat([weight.scale for weight in weights])
        zero, sums = _rows([weight.zero for weight in weights]), _rows([weight.sums for weight in weights])
        for linear, part in zip(self.linears, codes.split([len(w.codes) for w in weights]), strict=True):
            linear.weight_packed = part
        bias = None
        if any(linear.bias is not None for linear in self.linears):
            none = (scale.new_zeros(linear.out_features) for linear in self.linears)
            pairs = zip(self.linears, none, strict=True)
            bias = torch.cat([zeros if linear.bias is None else linear.bias.to(scale) for linear, zeros in pairs])
        return Coded(codes, scale, zero, sums), bias


def _rows(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def group_linears(linears: Sequence[PackedLinear]) -> None:
    """Make the linears of one site a group, where `int4_matmul` takes them and they share their kind of integers."""
    first = linears[0]
    quantizer = first.inputs.quantizer
    kinds = {(linear.format, linear.weight_scale.dtype) for linear in linears}
    if len(linears) < 2 or len(kinds) > 1 or not isinstance(quantizer, ActivationQuantizer):
        return
    if not all(kernel_takes(linear, quantizer) for linear in linears):
        return
    first.inputs.readers = 1
    group = PackedGroup(linears)
    for linear in linears:
        linear.__dict__["group"] = group
