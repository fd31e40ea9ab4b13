"""Two codes a byte, against Python's integers."""

from __future__ import annotations

import pytest
import torch

from sq.kernels.nibbles import pack_nibbles, unpack_nibbles

DTYPES = [torch.int8, torch.uint8, torch.int32, torch.int64, torch.float32]


def packed_by_hand(row: list[int]) -> list[int]:
    padded = [code % 16 for code in row] + [0] * (len(row) % 2)
    return [low + 16 * high for low, high in zip(padded[::2], padded[1::2], strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 5, 32])
@pytest.mark.parametrize("signed", [True, False])
def test_bytes_and_back(n: int, signed: bool, dtype: torch.dtype) -> None:
    if signed and dtype == torch.uint8:
        pytest.skip("no negative codes")
    codes = torch.randint(-8 if signed else 0, 8 if signed else 16, (3, n)).to(dtype)
    packed = pack_nibbles(codes)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [packed_by_hand([int(code) for code in row]) for row in codes]
    unpacked = unpack_nibbles(packed, signed)
    assert unpacked.dtype == torch.int8
    assert unpacked.is_contiguous()
    assert torch.equal(unpacked[:, :n], codes.to(torch.int8))


@pytest.mark.parametrize("signed", [True, False])
def test_every_byte_is_its_two_nibbles(signed: bool) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    codes = unpack_nibbles(every, signed)
    expected = [nibble - 16 * (signed and nibble > 7) for byte in range(256) for nibble in (byte % 16, byte // 16)]
    assert codes.tolist() == expected
    assert torch.equal(pack_nibbles(codes), every)


def test_views_of_any_stride_and_offset() -> None:
    codes = torch.randint(-8, 8, (6, 9), dtype=torch.int8)
    for view in (codes.flatten()[1:5], codes[:, 1:7], codes.T, codes[::2, ::2], codes[1:1]):
        assert torch.equal(pack_nibbles(view), pack_nibbles(view.clone(memory_format=torch.contiguous_format)))
    packed = pack_nibbles(codes)
    assert torch.equal(unpack_nibbles(packed.T, True), unpack_nibbles(packed.T.contiguous(), True))
    assert torch.equal(pack_nibbles(codes), packed), "an argument was written"
