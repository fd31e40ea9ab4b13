"""Integer codes as bytes: two codes a byte up to 4 bits, one a byte from 5 to 8.

A nibble holds a code of at most 4 bits; codes 2i and 2i+1 share byte i, the first in its low nibble. Signed codes
(symmetric, midrise) are two's complement nibbles, asymmetric ones unsigned. An odd row ends in a zero high nibble. 2-
and 3-bit codes take a whole nibble, 5- to 7-bit ones a whole byte: real kernels exist for 4 and 8 bits, the other
widths serve accuracy studies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.kernels.nibbles import pack_nibbles, unpack_nibbles


def packed_size(n: int, bits: int = 4) -> int:
    """Bytes of a row of n codes."""
    return (n + 1) // 2 if bits <= 4 else n


def pack(codes: Tensor, signed: bool, bits: int = 4) -> Tensor:
    """Codes (..., n), any integer dtype, as uint8 (..., ceil(n / 2)) up to 4 bits, (..., n) from 5 bits on.

    Raises:
        QuantizationError: a code that bits cannot hold.
    """
    _check_bits(bits)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    least, most = torch.stack(torch.aminmax(codes)).tolist() if codes.numel() else (low, high)
    if not low <= least <= most <= high:
        span = f"codes span {least}..{most}"
        raise QuantizationError(f"{span}; {bits} bits, {signed=}, hold {low}..{high}")
    # from 5 bits on the cast wraps modulo 256: two's complement
    return pack_nibbles(codes) if bits <= 4 else codes.to(torch.uint8, copy=True)


def unpack(packed: Tensor, n: int, signed: bool, bits: int = 4) -> Tensor:
    """The n codes of each row of packed: int8 (..., n); uint8 for unsigned codes of 5 to 8 bits.

    Raises:
        QuantizationError: packed is not uint8, or its last axis does not belong to n codes.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.shape[-1] != packed_size(n, bits):
        found = f"packed codes are {packed.dtype} with {packed.shape[-1]} bytes a row"
        raise QuantizationError(f"{found}; {n} codes of {bits} bits are torch.uint8 with {packed_size(n, bits)}")
    if bits > 4:
        return packed.view(torch.int8) if signed else packed
    return unpack_nibbles(packed, signed)[..., :n].contiguous()


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise QuantizationError(f"bits is {bits}; codes of 2 to 8 bits can be packed")
