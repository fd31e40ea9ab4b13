"""The int4 KV cache: arrays, levels, and torch's way to write and read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_choice
from ..coded import Coded, HasCodes
from ..nibbles import pack_nibbles, unpack_nibbles
from ..rotate_quantize.reference import quantize
from ..schemes import Scheme

# Signed codes q are stored as u = q + 8.
CONSTANT_ZERO: dict[Scheme, float] = {"symmetric": 8.0, "midrise": 7.5, "asymmetric": 0.0}


class Kv4Cache(NamedTuple):
    """Keys and values in 4 bits, with a grid for each token and head: values (u - z) s of stored codes u in 0..15.

    Attributes:
        keys, values: of B rows of a batch, H_kv heads, S positions and D features of a head, all contiguous: codes
            uint8 (B, H_kv, S, D / 2) with u of feature 2j in the low nibble of byte j, of 2j + 1 in the high one; scale
            float32 (B, H_kv, S), NaN where the token contained NaN or inf; zero (B, H_kv, S) for asymmetric, uint8, or
            int16 without include_zero, else None and z is CONSTANT_ZERO.
        scheme: of both.
        include_zero: asymmetric ranges are widened to contain 0, so that z is in 0..15.
    """

    keys: Coded
    values: Coded
    scheme: Scheme
    include_zero: bool = True


def kv4_cache(
    batch: int,
    kv_heads: int,
    capacity: int,
    head_dim: int,
    scheme: Scheme = "asymmetric",
    device: str | torch.device = "cpu",
    *,
    include_zero: bool = True,
) -> Kv4Cache:
    """An empty cache: 2 H_kv (D / 2 + 4) bytes a position, for asymmetric 2 H_kv more, twice that without include_zero.

    Raises:
        ValueError: an unknown scheme, a size below 1 or an odd head_dim.
    """
    check_choice("scheme", scheme, Scheme)
    if min(batch, kv_heads, capacity, head_dim) < 1 or head_dim % 2:
        raise ValueError(
            f"kv4_cache got batch={batch}, kv_heads={kv_heads}, capacity={capacity}, head_dim={head_dim}; "
            "sizes are at least 1 and head_dim is even, since two codes share a byte"
        )

    def side() -> Coded:
        shape = (batch, kv_heads, capacity)
        return Coded(
            torch.zeros((*shape, head_dim // 2), dtype=torch.uint8, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=zero_dtype(include_zero), device=device) if scheme == "asymmetric" else None,
        )

    return Kv4Cache(side(), side(), scheme, include_zero)


def zero_dtype(include_zero: bool) -> torch.dtype:
    """Of the zeros of an asymmetric cache."""
    return torch.uint8 if include_zero else torch.int16


def dequantized(side: HasCodes, scheme: Scheme, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values (B, H_kv, S, D) of a side's codes, computed in `dtype`."""
    codes = unpack_nibbles(side.codes, signed=False).to(dtype)
    zero = CONSTANT_ZERO[scheme] if side.zero is None else side.zero.to(dtype).unsqueeze(-1)
    return codes.sub_(zero).mul_(side.scale.to(dtype).unsqueeze(-1))


def append_reference(
    side: Coded, scheme: Scheme, x: Tensor, positions: Tensor, clips: Sequence[float], include_zero: bool
) -> None:
    """Quantize x (B, H_kv, N, D) in float32 and write token i of row b to position positions[b] + i."""
    codes, scale, zero, _ = quantize(x.float(), scheme, clips, include_zero=include_zero)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    columns = positions.to(torch.int64)[:, None] + torch.arange(x.shape[2], device=x.device)  # [B, N]
    signed = scheme != "asymmetric"
    side.codes[rows, :, columns] = pack_nibbles(codes + 8 if signed else codes).transpose(1, 2)
    side.scale[rows, :, columns] = scale.squeeze(-1).transpose(1, 2)
    if side.zero is not None and zero is not None:
        side.zero[rows, :, columns] = zero.squeeze(-1).to(side.zero.dtype).transpose(1, 2)
