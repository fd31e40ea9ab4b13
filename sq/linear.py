"""The quantized linear: transform -> activation quantizer -> matmul -> bias."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

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
        self._kept: tuple[Tensor, Tensor, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized x T, shape (..., n), dtype of x."""
        if self._kept is not None and self._kept[0] is x:
            source, result, left = self._kept
            self._kept = (source, result, left - 1) if left > 1 else None
            return result
        result = x if self.transform is None else self.transform(x)
        if self.observer is not None:
            self.observer(result)
        if self.quantizer is not None:
            result = self.quantizer(result)
        # Full readers within one forward see the very same tensor; identity is the safe key.
        self._kept = (x, result, self.readers - 1) if self.readers > 1 else None
        return result


class QuantizedLinear(nn.Module):
    """A linear that reads a `SiteInput`. `fake`: the weight holds dequantized values in floating point.

    Args:
        inputs: the site's input, shared by its readers.
        weight: (d_out, n), already transformed.
        bias: (d_out,) or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, inputs: SiteInput, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.inputs = inputs
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """quantize(x T) W^T + b, shape (..., d_out)."""
        return torch.nn.functional.linear(self.inputs(x), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as in nn.Linear."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
