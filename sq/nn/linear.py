"""The quantized linear: transform -> activation quantizer -> matmul -> bias, fake or packed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.grid import Scheme
from sq.formats.packing import pack, unpack
from sq.formats.weight import QuantizedWeight
from sq.kernels.coded import Coded
from sq.kernels.int4_matmul import int4_matmul, weight_sums
from sq.nn.integer_product import integer_linear
from sq.nn.site_input import SiteInput

if TYPE_CHECKING:
    from sq.nn.packed_group import PackedGroup


class QuantizedLinear(nn.Module):
    """A linear that reads a `SiteInput`. `fake`: the weight holds dequantized values in floating point.

    Args:
        inputs: the site's input, shared by its readers.
        weight: (d_out, n), already transformed.
        bias: (d_out,) or None.
        owns_inputs: whether `inputs` is a submodule here; of a site's readers one owns it, so that a state dict has it
            once.
    """

    weight: Tensor
    bias: Tensor | None
    inputs: SiteInput

    def __init__(self, inputs: SiteInput, weight: Tensor, bias: Tensor | None, *, owns_inputs: bool = True) -> None:
        super().__init__()
        _attach(self, inputs, owns_inputs)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """quantize(x T) W^T + b, shape (..., d_out)."""
        return torch.nn.functional.linear(self.inputs(x), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as in nn.Linear."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class PackedLinear(nn.Module):
    """The same linear with integer weights: two codes a byte up to 4 bits, one from 5 to 8.

    With quantized activations it multiplies integers and scales the int32 sums; with 16-bit activations the weight is
    unpacked to the dtype of x for each call.

    Args:
        inputs, owns_inputs: as in `QuantizedLinear`.
        weight: integer codes with their scales.
        bias: (d_out,) or None.
    """

    group: PackedGroup | None
    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero: Tensor | None
    bias: Tensor | None
    inputs: SiteInput

    def __init__(
        self, inputs: SiteInput, weight: QuantizedWeight, bias: Tensor | None, *, owns_inputs: bool = True
    ) -> None:
        super().__init__()
        _attach(self, inputs, owns_inputs)
        self.bits, self.scheme, self.group_size = weight.bits, weight.scheme, weight.group_size
        self.out_features, self.in_features = weight.codes.shape
        meta = weight.codes.device.type == "meta"
        size = (self.out_features, -(-self.in_features // 2) if weight.bits <= 4 else self.in_features)
        packed = (
            torch.empty(size, dtype=torch.uint8, device="meta")
            if meta
            else pack(weight.codes, weight.scheme != "asymmetric", weight.bits)
        )
        self._sums: Tensor | None = None
        self.__dict__["group"] = None
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("weight_zero", weight.zero)
        self.register_buffer("bias", bias)

    def integer_weight(self) -> QuantizedWeight:
        """Codes and scales, unpacked."""
        scheme: Scheme = self.scheme
        codes = unpack(self.weight_packed, self.in_features, scheme != "asymmetric", self.bits)
        return QuantizedWeight(codes, self.weight_scale, self.weight_zero, self.bits, scheme, self.group_size)

    def packed_weight(self) -> Coded:
        """Codes and scales as `int4_matmul` takes them, with what it computes from them once; at most 4 bits."""
        if self._sums is None or self._sums.device != self.weight_scale.device:
            bare = Coded(self.weight_packed, self.weight_scale, self.weight_zero)
            self._sums = weight_sums(bare, self.scheme)
        return Coded(self.weight_packed, self.weight_scale, self.weight_zero, self._sums)

    def forward(self, x: Tensor, up: Tensor | None = None) -> Tensor:
        """quantize(f(x) T) W^T + b, shape (..., d_out), dtype of x; f is what the site computes in front, if anything.

        Args:
            up: where the site computes silu(x) up.
        """
        quantizer = self.inputs.quantizer
        if self.group is not None and quantizer is not None and x.dtype != torch.float64:
            return self.group.output(self, x)
        if quantizer is None:
            weight = self.integer_weight().dequantize(x.dtype)
            return torch.nn.functional.linear(self.inputs(x, up), weight, self.bias)
        assert isinstance(quantizer, ActivationQuantizer)
        if x.dtype != torch.float64 and kernel_takes(self, quantizer):
            return int4_matmul(
                self.inputs.packed(x, up),
                self.packed_weight(),
                x_scheme=quantizer.scheme,
                w_scheme=self.scheme,
                bias=self.bias,
                dtype=x.dtype,
            )
        y = integer_linear(self.inputs.integers(x, up), self.integer_weight())
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._sums = None
        if self.group is not None:
            self.group.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """Sizes and the kind of integers."""
        size = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{size}, bits={self.bits}, scheme={self.scheme}, group_size={self.group_size}"


def kernel_takes(linear: PackedLinear, quantizer: ActivationQuantizer) -> bool:
    """Whether `int4_matmul` has a form for this linear; the plain product of integers has one for all."""
    groups_fit = quantizer.group_size is None and (linear.group_size or 2) % 2 == 0
    codes_fit = linear.bits <= 4 and (quantizer.bits <= 4 or quantizer.scheme == "symmetric")
    return groups_fit and codes_fit and linear.in_features % 2 == 0


def _attach(linear: QuantizedLinear | PackedLinear, inputs: SiteInput, owns: bool) -> None:
    if owns:
        linear.inputs = inputs
    else:  # past nn.Module's registration: the owner moves it and saves it
        linear.__dict__["inputs"] = inputs
