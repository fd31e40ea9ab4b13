"""Nibbles: layout by hand, round trip for every size, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.errors import QuantizationError
from sq.formats.packing import pack, packed_size, unpack


def test_layout_by_hand() -> None:
    assert pack(torch.tensor([1, 2, 15], dtype=torch.uint8), signed=False).tolist() == [0x21, 0x0F]
    assert pack(torch.tensor([-1, -8, 7], dtype=torch.int8), signed=True).tolist() == [0x8F, 0x07]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [0, 1, 2, 3, 8, 17])
def test_round_trip(signed: bool, bits: int, n: int) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    codes = torch.randint(low, low + 2**bits, (3, 2, n)).to(torch.int8 if signed else torch.uint8)
    packed = pack(codes, signed, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, 2, packed_size(n, bits))
    restored = unpack(packed, n, signed, bits)
    assert restored.dtype == (torch.uint8 if not signed and bits > 4 else torch.int8)
    assert torch.equal(restored.int(), codes.int())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-8, 7), max_size=40))
def test_bytes_equal_integer_arithmetic(codes: list[int]) -> None:
    padded = codes + [0] * (len(codes) % 2)
    expected = [(a % 16) + 16 * (b % 16) for a, b in zip(padded[::2], padded[1::2], strict=True)]
    assert pack(torch.tensor(codes, dtype=torch.int8), signed=True).tolist() == expected


def test_bad_input_is_named() -> None:
    with pytest.raises(QuantizationError, match=r"0\.\.9"):
        pack(torch.tensor([0, 9], dtype=torch.int8), signed=True)
    with pytest.raises(QuantizationError, match=r"-1\.\.0"):
        pack(torch.tensor([0, -1], dtype=torch.int8), signed=False)
    with pytest.raises(QuantizationError, match="2 bytes a row"):
        unpack(torch.zeros(4, 2, dtype=torch.uint8), 5, signed=True)
    with pytest.raises(QuantizationError, match="int8"):
        unpack(torch.zeros(4, 2, dtype=torch.int8), 4, signed=True)
    with pytest.raises(QuantizationError, match="bits is 9"):
        pack(torch.zeros(2, dtype=torch.int8), signed=True, bits=9)
