"""Nibbles as two planes of bytes, the even features of a row, then the odd ones; and the sums of a weight's levels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..coded import HasCodes
from ..schemes import Scheme


def int8_planes(packed: Tensor, scheme: Scheme) -> Tensor:
    """Packed codes uint8 (..., n / 2) as int8 (..., 2, n / 2): -8..7, or 0..15 for asymmetric."""
    planes = torch.empty((*packed.shape[:-1], 2, packed.shape[-1]), dtype=torch.int8, device=packed.device)
    _unpack(packed, "symmetric" if scheme == "midrise" else scheme, planes)
    return planes


def levels_of(codes: Tensor, scheme: Scheme, groups: int) -> tuple[Tensor, float]:
    """Integer levels and the unit they count in, for codes packed, uint8 (rows, b), or in planes, int8 (rows, 2, b).

    Levels are codes, in units of 1; on the mid-rise grid 2q + 1, in units of 1/2: small, since CPUs without VNNI add
    two products in 16 bits, and saturate. Returns int8 (rows, G, 2, b / G), a view of planes as far as it can, and the
    unit.
    """
    unit = 0.5 if scheme == "midrise" else 1.0
    size = codes.shape[-1] // groups
    if codes.dtype == torch.int8:
        levels = codes.view(-1, 2, groups, size).transpose(1, 2)
        return levels * 2 + 1 if scheme == "midrise" else levels, unit
    levels = torch.empty(codes.shape[0], groups, 2, size, dtype=torch.int8, device=codes.device)
    _unpack(codes.reshape(-1, groups, size), scheme, levels)
    return levels, unit


@torch.no_grad()
def weight_sums(w: HasCodes, scheme: Scheme) -> Tensor:
    """Row sums that a zero point of the activations is multiplied by, float32 (d_out,), from float64.

    sum_k (p_k - z) of one scale a channel, sum_k (p_k - z) s of groups; p is the code, code + 1/2 for midrise.
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


def _unpack(packed: Tensor, scheme: Scheme, out: Tensor) -> None:
    """Levels of uint8 (..., b), written to int8 (..., 2, b)."""
    low, high = out.unbind(-2)
    if scheme == "asymmetric":
        torch.bitwise_and(packed, 15, out=low.view(torch.uint8))
        torch.bitwise_right_shift(packed, 4, out=high.view(torch.uint8))
        return
    signed, shift = packed.view(torch.int8), 3 if scheme == "midrise" else 4
    torch.mul(signed, 16, out=low)  # modulo 256; shifting bytes to the left takes half as long again
    low.bitwise_right_shift_(shift)
    torch.bitwise_right_shift(signed, shift, out=high)
    if scheme == "midrise":
        out.bitwise_or_(1)
