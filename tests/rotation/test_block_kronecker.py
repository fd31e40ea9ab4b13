"""BlockKronecker against dense matrices: what it does, undoes, costs and takes in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sq.rotation import BlockKronecker, Kronecker, PerHead, absorb, block_factors, has_hadamard, random_orthogonal
from sq.rotation.serialize import describe, empty_transform


def made(n1: int, n2: int, mixes: bool = True) -> BlockKronecker:
    generator = torch.Generator().manual_seed(n1 * 100 + n2)
    blocks = torch.randn(n1, n2, n2, generator=generator, dtype=torch.float64)
    return BlockKronecker(blocks + 3 * n2**0.5 * torch.eye(n2), random_orthogonal(n1, 0) if mixes else None)


@given(st.integers(1, 7), st.integers(1, 9), st.booleans())
def test_it_is_block_diagonal_then_r1(n1: int, n2: int, mixes: bool) -> None:
    transform = made(n1, n2, mixes)
    dense = torch.block_diag(*transform.get_buffer("blocks"))
    if mixes:
        dense = dense @ torch.kron(random_orthogonal(n1, 0), torch.eye(n2, dtype=torch.float64))
    x, w = torch.randn(3, n1 * n2, dtype=torch.float64), torch.randn(5, n1 * n2, dtype=torch.float64)
    torch.testing.assert_close(transform(x), x @ dense, rtol=0, atol=1e-10)
    torch.testing.assert_close(transform.inverse(transform(x)), x, rtol=0, atol=1e-9)
    torch.testing.assert_close(transform.inverse_transpose(w), w @ torch.linalg.inv(dense).T, rtol=0, atol=1e-9)
    torch.testing.assert_close(transform(x) @ transform.inverse_transpose(w).T, x @ w.T, rtol=0, atol=1e-8)
    torch.testing.assert_close(transform.transpose(w), w @ dense.T, rtol=0, atol=1e-10)
    assert transform.macs() == n1 * n2 * (n2 + (n1 if mixes else 0))


@pytest.mark.parametrize("shape", [(0,), (2, 0), (2, 3)])
def test_shapes_are_kept(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, 12)
    assert made(3, 4)(x).shape == x.shape
    assert made(3, 4)(x.bfloat16()).dtype == torch.bfloat16


def test_absorbed_is_blocks_then_rotation() -> None:
    blocks = PerHead(made(4, 6).get_buffer("blocks"), orthogonal=False)
    rotation = Kronecker(random_orthogonal(4, 1), random_orthogonal(6, 2))
    x = torch.randn(5, 24, dtype=torch.float64)
    merged = absorb(blocks, rotation)
    torch.testing.assert_close(merged(x), rotation(blocks(x)), rtol=0, atol=1e-10)
    assert merged.macs() == rotation.macs()
    halves = absorb(blocks, Kronecker(4, random_orthogonal(6, 2)))
    assert halves.macs() == 24 * 6
    torch.testing.assert_close(absorb(blocks, Kronecker(random_orthogonal(4, 1), 6)).matrix()[:, :1].norm(),
                               Kronecker(random_orthogonal(4, 1), 6)(blocks.matrix())[:, :1].norm())  # fmt: skip
    with pytest.raises(ValueError, match="each row of X needs one block"):
        absorb(blocks, Kronecker(random_orthogonal(6, 1), random_orthogonal(4, 2)))


def test_the_inverse_is_not_saved() -> None:
    transform = made(3, 4)
    assert set(transform.state_dict()) == {"blocks", "r1"}
    read = empty_transform(describe(transform), "cpu")
    read.load_state_dict(transform.state_dict())
    x = torch.randn(2, 12, dtype=torch.float64)
    torch.testing.assert_close(read.inverse(read(x)), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(read(x), transform(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("n", "block", "expected"),
    [(576, 128, (8, 72)), (1536, 128, (12, 128)), (4096, 128, (32, 128)), (11008, 128, (64, 172)),
     (14336, 128, (112, 128)), (896, 128, (8, 112)), (18944, 128, (128, 148)), (64, 128, (1, 64)), (48, 12, (4, 12))],
)  # fmt: skip
def test_factors(n: int, block: int, expected: tuple[int, int]) -> None:
    assert block_factors(n, block, has_hadamard) == expected


def test_no_factors() -> None:
    assert block_factors(576, 128) == (6, 96)
    with pytest.raises(ValueError, match="no pair n1 n2 with a block n2 of 2 to 128"):
        block_factors(131, 128)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"needs \(n1, n2, n2\)"):
        BlockKronecker(torch.ones(2, 3, 4), None)
    with pytest.raises(ValueError, match="3 blocks need"):
        BlockKronecker(torch.eye(2).repeat(3, 1, 1), torch.eye(2))
    with pytest.raises(ValueError, match="singular"):
        BlockKronecker(torch.zeros(3, 2, 2), None)
    with pytest.raises(ValueError, match="not orthogonal"):
        BlockKronecker(torch.eye(2).repeat(3, 1, 1), 2 * torch.eye(3))
