"""The quantized linear: transform -> activation quantizer -> matmul -> bias, fake or packed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.qtensor import QTensor
from sq.kernels.coded import Coded
from sq.kernels.compiled import Prepared
from sq.kernels.int4_matmul import CpuWeight, int4_matmul, obstacle, weight_sums
from sq.nn.cpu_decode import CpuDecode, decode_of
from sq.nn.integer_product import integer_linear, is_integer
from sq.nn.site_input import SiteInput, scheme_of

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
    """The same linear with a packed weight: two codes a byte up to 4 bits, one from 5 to 8.

    Where weights and activations are integers it multiplies integers and scales the int32 sums. Other formats (MXFP4,
    NVFP4, FP8) and 16-bit activations are stored packed and computed in floating point: the weight is dequantized to
    the dtype of x for each call.

    Args:
        inputs, owns_inputs: as in `QuantizedLinear`.
        weight: codes with their scales, packed or not; on the meta device for a checkpoint to fill.
        bias: (d_out,) or None.
    """

    group: PackedGroup | None
    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero: Tensor | None
    weight_second: Tensor | None
    bias: Tensor | None
    inputs: SiteInput

    def __init__(self, inputs: SiteInput, weight: QTensor, bias: Tensor | None, *, owns_inputs: bool = True) -> None:
        super().__init__()
        _attach(self, inputs, owns_inputs)
        self.format = weight.format
        self.out_features, self.in_features = weight.shape
        packed = weight.pack()
        self._sums: Tensor | None = None
        self._prepared: Prepared[CpuWeight] = Prepared()
        self._decode: Prepared[CpuDecode] = Prepared()
        self.__dict__["group"] = None
        self.register_buffer("weight_packed", packed.codes)
        self.register_buffer("weight_scale", packed.scale)
        self.register_buffer("weight_zero", packed.zero)
        self.register_buffer("weight_second", packed.second)
        self.register_buffer("bias", bias)

    @property
    def qweight(self) -> QTensor:
        """The weight, packed."""
        return QTensor(
            self.format, self.weight_packed, self.weight_scale, self.weight_zero, self.weight_second, self.in_features
        )

    def packed_weight(self) -> Coded:
        """Codes and scales as `int4_matmul` takes them, with what it computes from them once; at most 4 bits."""
        if self._sums is None or self._sums.device != self.weight_scale.device:
            bare = Coded(self.weight_packed, self.weight_scale, self.weight_zero)
            self._sums = weight_sums(bare, scheme_of(self.format))
        return Coded(self.weight_packed, self.weight_scale, self.weight_zero, self._sums)

    def forward(self, x: Tensor, up: Tensor | None = None) -> Tensor:
        """quantize(f(x) T) W^T + b, shape (..., d_out), dtype of x; f and `up` are those of `SiteInput.forward`."""
        if (group := self.group) is not None and (y := group.kept(self, x)) is not None:
            return y
        if (decode := self._decode.value) is not None and (y := decode.output(x, up)) is not None:
            return y
        quantizer = self.inputs.quantizer
        if group is not None and quantizer is not None and x.dtype != torch.float64:
            return group.output(self, x)
        if not (isinstance(quantizer, ActivationQuantizer) and multiplies_integers(self, quantizer)):
            return torch.nn.functional.linear(self.inputs(x, up), self.qweight.dequantize(x.dtype), self.bias)
        if x.dtype != torch.float64 and kernel_takes(self, quantizer):
            codes = self.inputs.packed(x, up)
            if x.device.type == "cpu" and (prepared := self._on_cpu()).takes(codes, x.dtype):
                self._decode.value = decode_of(self.inputs, (self,), prepared, x)
                return prepared.product(codes, scheme_of(quantizer.format), x.dtype)
            return int4_product(codes, self.packed_weight(), self, self.bias, x.dtype)
        y = integer_linear(self.inputs.encoded(x, up), self.qweight.unpack())
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def _on_cpu(self) -> CpuWeight:
        """The weight as a CPU multiplies by it, made once."""
        parts = (self.weight_packed, self.weight_scale, self.weight_zero, self.bias)
        if (held := self._prepared.value) is None or not held.is_of(parts):
            held = self._prepared.value = CpuWeight(self.packed_weight(), scheme_of(self.format), self.bias)
        return held

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._sums = self._prepared.value = self._decode.value = None
        if self.group is not None:
            self.group.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """Sizes and format."""
        scheme = "" if self.format.scheme is None else f", scheme={self.format.scheme}"
        return f"in_features={self.in_features}, out_features={self.out_features}, format={self.format.name}{scheme}"


def int4_product(x: Coded, weight: Coded, like: PackedLinear, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`int4_matmul` with the schemes of a linear's weight and of its site's activations."""
    quantizer = like.inputs.quantizer
    assert isinstance(quantizer, ActivationQuantizer)
    x_scheme, w_scheme = scheme_of(quantizer.format), scheme_of(like.format)
    return int4_matmul(x, weight, x_scheme=x_scheme, w_scheme=w_scheme, bias=bias, dtype=dtype)


def kernel_takes(linear: PackedLinear, quantizer: ActivationQuantizer) -> bool:
    """Whether `int4_matmul` takes this linear; the plain product of integers has a form for all."""
    return obstacle(quantizer.format, linear.format, linear.in_features) is None


def multiplies_integers(linear: PackedLinear, quantizer: ActivationQuantizer) -> bool:
    """Whether a linear's weight and activations are integers whose groups fit each other."""
    if not (is_integer(linear.format) and is_integer(quantizer.format)):
        return False
    groups = sorted((linear.format.groups(linear.in_features), quantizer.format.groups(linear.in_features)))
    return groups[1] % groups[0] == 0


def _attach(linear: QuantizedLinear | PackedLinear, inputs: SiteInput, owns: bool) -> None:
    if owns:
        linear.inputs = inputs
    else:  # past nn.Module's registration: the owner moves it and saves it
        linear.__dict__["inputs"] = inputs
