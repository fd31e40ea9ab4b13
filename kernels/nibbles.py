"""Codes of up to 4 bits, two a byte: code 2j in the low nibble of byte j, code 2j + 1 in the high one."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_nibbles(codes: Tensor) -> Tensor:
    """Integer-valued codes (..., n) of any dtype as uint8 (..., ceil(n / 2)); negative ones as two's complement.

    Codes are -8..7 or 0..15, which is not checked. An odd row ends in a zero high nibble.
    """
    data = codes.to(torch.int8)
    if data.shape[-1] % 2:
        data = torch.nn.functional.pad(data, (0, 1))
    if data.numel() == 0:
        return data[..., ::2].view(torch.uint8)
    data = data.contiguous()
    if data.storage_offset() % 2:  # a view as int16 begins at an even byte
        data = data.clone()
    pairs = data.view(torch.int16)  # little-endian: the even code lies in the low byte
    return ((pairs & 15) | ((pairs >> 4) & 0xF0)).to(torch.uint8)


def unpack_nibbles(packed: Tensor, signed: bool) -> Tensor:
    """The nibbles of uint8 (..., b) as int8 (..., 2 b), contiguous: -8..7 of signed codes, else 0..15."""
    pairs = packed.to(torch.int16, memory_format=torch.contiguous_format)
    codes = (pairs << 4).bitwise_or_(pairs).bitwise_and_(0x0F0F).view(torch.int8)
    return codes.bitwise_xor_(8).sub_(8) if signed else codes  # sign extension of a nibble
