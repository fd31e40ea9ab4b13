"""Packed weights, and what is computed from them once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..rotate_quantize.reference import Scheme
from .planes import levels_of


class PackedWeight(NamedTuple):
    """A 4-bit weight (d_out, d_in), d_in even.

    Attributes:
        codes: uint8 (d_out, d_in / 2): code 2j in the low nibble of byte j, 2j + 1 in the high one; two's complement
            for symmetric and midrise, unsigned for asymmetric. The torch backend also takes int8 (d_out, 2, d_in / 2),
            see `int8_planes`: twice the bytes, and no unpacking in every call.
        scale: (d_out, G), float32, float16 or bfloat16; G = 1, or groups of d_in / G consecutive features, an even
            number.
        zero: (d_out, G), integer-valued, of any of scale's dtypes, for asymmetric; else None.
        sums: (d_out,) float32 of `weight_sums`; needed where the activations have zeros, and by the Triton kernel for
            mid-rise activations in int8.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    sums: Tensor | None = None


@torch.no_grad()
def weight_sums(w: PackedWeight, scheme: Scheme) -> Tensor:
    """Row sums that a zero point of the activations is multiplied by, float32 (d_out,).

    sum_k (p_k - z) for one scale per channel: exact, and to be scaled with the product; sum_k (p_k - z) s for groups.
    p is the code, code + 1/2 for midrise. Computed in float64.
    """
    groups = w.scale.shape[1]
    size = 2 * w.codes.shape[-1] // groups
    sums = torch.empty(w.codes.shape[0], device=w.codes.device)
    step = max(1, 2**22 // (groups * size))
    for first in range(0, len(sums), step):
        rows = slice(first, first + step)
        levels, unit = levels_of(w.codes[rows], scheme, groups)  # [rows, G, 2, d_in / 2G]
        part = levels.sum((2, 3), dtype=torch.int64).double() * unit
        if w.zero is not None:
            part -= size * w.zero[rows].double()
        if groups > 1:
            part *= w.scale[rows].double()
        sums[rows] = part.sum(1).float()
    return sums
