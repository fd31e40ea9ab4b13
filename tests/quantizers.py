"""Quantizers of integers from bits, scheme and group size; 16 bits stand for none, as in recipes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sq.formats.activation import ActivationQuantizer, Clip
from sq.formats.format import Format, integer
from sq.formats.weight import WeightQuantizer
from sq.kernels.schemes import Scheme
from sq.quantize.rounders.registry import rounder_class
from sq.quantize.rounders.rounder import WeightRounder


def row_format(bits: int, scheme: Scheme, include_zero: bool = True) -> Format:
    """Integers whose asymmetric ranges are widened to hold 0, or are not: the format of rows, or of groups of 8."""
    return integer(bits, scheme, None if include_zero else 8)


def activation_quantizer(
    bits: int = 4,
    scheme: Scheme = "symmetric",
    clip: Clip = 1.0,
    group_size: int | None = None,
    candidates: int = 9,
) -> Any:
    """An `ActivationQuantizer`, None for 16 bits."""
    return None if bits == 16 else ActivationQuantizer(integer(bits, scheme, group_size), clip, candidates)


def weight_quantizer(bits: int = 4, scheme: Scheme = "symmetric", group_size: int | None = None, **search: Any) -> Any:
    """A `WeightQuantizer`, None for 16 bits.

    Args:
        search: clip, norm, search_grid, max_shrink.
    """
    return None if bits == 16 else WeightQuantizer(integer(bits, scheme, group_size), **search)


def rounder(name: str, quantizer: WeightQuantizer | None, **options: Any) -> WeightRounder | None:
    """A registered rounder with its options, None where there is no quantizer."""
    return None if quantizer is None else rounder_class(name)(quantizer, **options)


class Unrounded(ActivationQuantizer):
    """A quantizer that changes nothing: what it stands for takes part in a recipe, and stays as it is."""

    def __init__(self) -> None:
        super().__init__(integer(8))

    def forward(self, x: Tensor) -> Tensor:
        return x
