"""Codes with their scales: what a quantized tensor is to every kernel."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class HasCodes(Protocol):
    """Anything with codes, scale and zero as `Coded` has them: that, or a caller's own kind of quantized tensor."""

    @property
    def codes(self) -> Tensor: ...
    @property
    def scale(self) -> Tensor: ...
    @property
    def zero(self) -> Tensor | None: ...


class Coded(NamedTuple):
    """Codes q, scales s and zero points z of value (q - z) s, or (q + 1/2) s on the mid-rise grid (kernels/grid.py).

    One form for activations, weights, keys and values; each operation says which shapes and dtypes it takes.
    """

    codes: Tensor  # integers in one of the containers of `rotate_quantize`
    scale: Tensor  # floating point
    zero: Tensor | None = None  # integer-valued, of scale's shape, for asymmetric codes; else None
    sums: Tensor | None = None  # of a weight, `weight_sums` of int4_matmul; else None
