"""The quantized linear: transform -> activation quantizer -> matmul -> bias, fake or packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sq.kernels.int4_matmul import PackedWeight, int4_matmul, weight_sums
from sq.kernels.rotate_quantize import PackedActivations
from sq.quant import ActivationQuantizer, QuantizedWeight, pack, unpack
from sq.quant.grid import Scheme
from sq.quant.integer import Integers, integer_linear
from sq.rotation.transform import Transform


class SiteInput(nn.Module):
    """Transform and quantize the activations of one site, once for all linears that read it.

    Args:
        transform: applied online, or None.
        quantizer: activation quantizer, or None for 16-bit activations.
        readers: number of linears that read the site; the result is kept until the last has it.
    """

    def __init__(self, transform: Transform | None, quantizer: nn.Module | None, readers: int) -> None:
        super().__init__()
        self.transform = transform
        self.quantizer = quantizer
        self.readers = readers
        self.observer: Callable[[Tensor], None] | None = None
        self._kept: tuple[Tensor, Any, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized x T, shape (..., n), dtype of x."""

        def fake(turned: Tensor) -> Tensor:
            return turned if self.quantizer is None else self.quantizer(turned)

        result: Tensor = self._once(x, fake)
        return result

    def integers(self, x: Tensor) -> Integers:
        """Codes, scales and zero points of x T (..., n); the quantizer must be an `ActivationQuantizer`."""
        assert isinstance(self.quantizer, ActivationQuantizer)
        quantizer = self.quantizer
        result: Integers = self._once(x, lambda turned: Integers(*quantizer.codes(turned), quantizer.scheme))
        return result

    def _once(self, x: Tensor, quantize: Callable[[Tensor], Any]) -> Any:
        if self._kept is not None and self._kept[0] is x:
            source, result, left = self._kept
            self._kept = (source, result, left - 1) if left > 1 else None
            return result
        turned = x if self.transform is None else self.transform(x)
        if self.observer is not None:
            self.observer(turned)
        result = quantize(turned)
        # Full readers within one forward see the very same tensor; identity is the safe key.
        self._kept = (x, result, self.readers - 1) if self.readers > 1 else None
        return result


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
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("weight_zero", weight.zero)
        self.register_buffer("bias", bias)

    def integer_weight(self) -> QuantizedWeight:
        """Codes and scales, unpacked."""
        scheme: Scheme = self.scheme
        codes = unpack(self.weight_packed, self.in_features, scheme != "asymmetric", self.bits)
        return QuantizedWeight(codes, self.weight_scale, self.weight_zero, self.bits, scheme, self.group_size)

    def forward(self, x: Tensor) -> Tensor:
        """quantize(x T) W^T + b, shape (..., d_out), dtype of x."""
        quantizer = self.inputs.quantizer
        if quantizer is None:
            weight = self.integer_weight().dequantize(x.dtype)
            return torch.nn.functional.linear(self.inputs(x), weight, self.bias)
        activations = self.inputs.integers(x)
        if self._kernel_takes(quantizer, x.dtype):
            return self._multiply(activations, x.dtype)
        y = integer_linear(activations, self.integer_weight())
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def _kernel_takes(self, quantizer: nn.Module, dtype: torch.dtype) -> bool:
        """Whether `int4_matmul` has a form for this linear; the plain product of integers has one for all."""
        assert isinstance(quantizer, ActivationQuantizer)
        groups_fit = quantizer.group_size is None and (self.group_size or 2) % 2 == 0
        codes_fit = self.bits <= 4 and (quantizer.bits <= 4 or quantizer.scheme == "symmetric")
        return groups_fit and codes_fit and self.in_features % 2 == 0 and dtype != torch.float64

    def _multiply(self, x: Integers, dtype: torch.dtype) -> Tensor:
        if self._sums is None or self._sums.device != self.weight_scale.device:
            bare = PackedWeight(self.weight_packed, self.weight_scale, self.weight_zero)
            self._sums = weight_sums(bare, self.scheme)
        weight = PackedWeight(self.weight_packed, self.weight_scale, self.weight_zero, self._sums)
        activations = PackedActivations(x.codes.to(torch.int8), x.scale, x.zero)
        return int4_matmul(activations, weight, x_scheme=x.scheme, w_scheme=self.scheme, bias=self.bias, dtype=dtype)

    def extra_repr(self) -> str:
        """Sizes and the kind of integers."""
        size = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{size}, bits={self.bits}, scheme={self.scheme}, group_size={self.group_size}"


def _attach(linear: QuantizedLinear | PackedLinear, inputs: SiteInput, owns: bool) -> None:
    if owns:
        linear.inputs = inputs
    else:  # past nn.Module's registration: the owner moves it and saves it
        linear.__dict__["inputs"] = inputs
