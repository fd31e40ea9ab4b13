"""Second moments that are never made as a whole: products, blocks and the balances built on them, against matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sq.rotation import LowRank, OfMatrix, OfRows, SecondMoment, Stretched, block_balance, low_rank_balance
from sq.rotation import second_moment as module
from sq.rotation.second_moment import Normalized

N, BLOCK = 24, 6


def rows(count: int, seed: int, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, n, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, n)


def gram(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def stretch() -> LowRank:
    basis = torch.linalg.qr(rows(N, 7)[:, :3]).Q
    return LowRank(None, basis, torch.diag(torch.tensor([4.0, 0.5, 0.1], dtype=torch.float64)))


def cases() -> list[tuple[str, SecondMoment, Tensor]]:
    """Name, what is tested, and the matrix that it stands for."""
    x, low_rank = rows(50, 0), stretch()
    c, t = gram(x), low_rank.matrix()
    inverse = torch.linalg.inv(t)
    mean = c.diagonal().mean()
    return [
        ("matrix", OfMatrix(c), c),
        ("rows", OfRows(x), c),
        ("normalized", Normalized(OfRows(x), mean, 0.01), c / mean + 0.01 * torch.eye(N)),
        ("activations behind a stretch", Stretched(OfMatrix(c), low_rank), t.T @ c @ t),
        ("weights behind a stretch", Stretched(OfRows(x), low_rank, of_weights=True), inverse @ c @ inverse.T),
    ]


@pytest.mark.parametrize(("name", "found", "matrix"), cases(), ids=[name for name, _, _ in cases()])
def test_products_blocks_and_the_whole_are_those_of_the_matrix(
    name: str, found: SecondMoment, matrix: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 7)  # several parts, the last one short
    v = rows(N, 3)[:, :4]
    torch.testing.assert_close(found.times(v), matrix @ v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.dense(), matrix, rtol=1e-9, atol=1e-9)
    for size in (1, BLOCK, N):
        expected = torch.stack([matrix[i : i + size, i : i + size] for i in range(0, N, size)])
        torch.testing.assert_close(found.blocks(size), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.mean(), matrix.diagonal().mean())
    assert bool(found.is_finite())
    single = found.times(v.float())
    assert single.dtype == torch.float32
    assert float((single - matrix @ v).norm() / (matrix @ v).norm()) < 1e-5


def test_nan_is_seen_and_another_shape_refused() -> None:
    x = rows(9, 1)
    x[3, 2] = torch.nan
    assert not bool(OfRows(x).is_finite())
    assert not bool(OfMatrix(gram(x)).is_finite())
    with pytest.raises(ValueError, match=r"weight second moment has shape \(9, 24\)"):
        OfMatrix(rows(9, 1), "weight")


@pytest.mark.parametrize("n", [24, 1200])
def test_balances_of_rows_are_those_of_their_matrix(n: int) -> None:
    """Above and below the size from which the leading directions come from products with a few vectors."""
    x, w = rows(3 * n, 0, n).float(), rows(2 * n, 1, n).float().flip(1)
    by_rows = low_rank_balance(OfMatrix(gram(x)), OfRows(w), 2)
    by_matrix = low_rank_balance(gram(x), gram(w), 2)
    torch.testing.assert_close(by_rows.matrix(), by_matrix.matrix(), rtol=0, atol=2e-3)
    blocks = block_balance(Stretched(OfMatrix(gram(x)), by_rows), Stretched(OfRows(w), by_rows, of_weights=True), 6)
    t = by_rows.matrix().double()
    inverse = torch.linalg.inv(t)
    expected = block_balance(t.T @ gram(x).double() @ t, inverse @ gram(w).double() @ inverse.T, 6)
    ours, theirs = (found.get_buffer("blocks") for found in (blocks, expected))
    torch.testing.assert_close(ours @ ours.mT, theirs @ theirs.mT, rtol=1e-4, atol=1e-4)
