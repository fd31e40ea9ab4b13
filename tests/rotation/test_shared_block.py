"""Which transforms are one block that all neighbours share, and the Hadamard of blocks."""

from __future__ import annotations

import pytest
import torch

from sq.errors import QuantizationError
from sq.rotation import (
    BlockHadamard,
    Compose,
    Dense,
    Hadamard,
    Identity,
    Kronecker,
    PerHead,
    Transform,
    hadamard_matrix,
    largest_power,
    random_orthogonal,
    random_signs,
)
from sq.rotation.shared_block import shared_block, width_obstacle

M = random_orthogonal(6, 0)


@pytest.mark.parametrize(
    ("transform", "size", "named"),
    [
        (Hadamard(1024), 1024, True),
        (BlockHadamard(24, 8), 8, True),
        (Dense(hadamard_matrix(4) / 2, orthogonal=True), 4, True),
        (Kronecker(5, hadamard_matrix(8) / 8**0.5), 8, True),
        (Hadamard(12), 12, False),
        (Hadamard(8, random_signs(8, 1)), 8, False),
        (Kronecker(4, M), 6, False),
        (PerHead(M.expand(3, -1, -1)), 6, False),
        (Dense(M, orthogonal=True), 6, False),
    ],
    ids=str,
)
def test_a_shared_block_is_found(transform: Transform, size: int, named: bool) -> None:
    """x T is what I (x) M makes of x, a Sylvester Hadamard being known without its matrix."""
    block = shared_block(transform, "here")
    assert block is not None
    assert (block.size, block.matrix is None) == (size, named)
    x = torch.randn(3, transform.n, dtype=torch.float64)
    m = hadamard_matrix(size) / size**0.5 if block.matrix is None else block.matrix
    torch.testing.assert_close(transform(x), (x.unflatten(-1, (-1, size)) @ m).flatten(-2))


@pytest.mark.parametrize(
    "transform",
    [
        Kronecker(M, M),
        Kronecker(M, 4),
        PerHead(torch.stack([random_orthogonal(6, seed) for seed in range(2)])),
        Compose([Identity(6), Dense(M, orthogonal=True)]),
        Hadamard(768),
        Hadamard(1024, random_signs(1024, 0)),
        Dense(random_orthogonal(600, 0), orthogonal=True),
    ],
    ids=str,
)
def test_what_is_no_shared_block_is_refused(transform: Transform) -> None:
    with pytest.raises(QuantizationError, match=rf"layer 3, o: a {type(transform).__name__} of {transform.n} features"):
        shared_block(transform, "layer 3, o")


def test_nothing_stands_for_the_identity() -> None:
    assert shared_block(Identity(7), "here") is None


@pytest.mark.parametrize(
    ("kind", "n", "fits"),
    [("hadamard", 4096, True), ("hadamard", 96, True), ("hadamard", 768, False), ("orthogonal", 512, True),
     ("orthogonal", 513, False)],
)  # fmt: skip
def test_widths(kind: str, n: int, fits: bool) -> None:
    assert (width_obstacle(kind, n) is None) == fits


def test_a_hadamard_of_blocks() -> None:
    assert [largest_power(n) for n in (84, 96, 1536, 11008, 7)] == [4, 32, 512, 256, 1]
    transform = BlockHadamard(1536, 512)
    assert transform.macs() == 1536 * 9
    x = torch.randn(2, 1536, dtype=torch.float64)
    torch.testing.assert_close(transform(x), torch.cat([Hadamard(512)(part) for part in x.split(512, -1)], -1))
    torch.testing.assert_close(transform.inverse(transform(x)), x)
    for n, k in ((24, 6), (24, 16), (24, 1)):
        with pytest.raises(ValueError, match=f"blocks of {k}; use a power of two that divides {n}"):
            BlockHadamard(n, k)
