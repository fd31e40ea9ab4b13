"""Balance: both sides end with the same second moment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.errors import CalibrationError
from sq.rotation import (
    OfRows,
    block_balance,
    dense_balance,
    diagonal_balance,
    low_rank_balance,
    random_orthogonal,
)


def data(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and weights with unlike covariances, shapes (5n, n) and (4n, n)."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, n, dtype=torch.float64)
    x = torch.randn(5 * n, n, generator=generator, dtype=torch.float64) * spread @ random_orthogonal(n, seed)
    w = torch.randn(4 * n, n, generator=generator, dtype=torch.float64) * spread @ random_orthogonal(n, seed + 1)
    return x, w


def moment(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / x.shape[0]


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(0).sqrt()


def unit_trace(c: torch.Tensor) -> torch.Tensor:
    return c / c.diagonal().mean()


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 20), seed=st.integers(0, 100))
def test_diagonal_balance_makes_the_rms_proportional(n: int, seed: int) -> None:
    x, w = data(n, seed)
    s = diagonal_balance(rms(x), rms(w))
    ratio = rms(x / s) / rms(w * s)
    torch.testing.assert_close(ratio, ratio[0].expand(n), rtol=1e-10, atol=0)
    torch.testing.assert_close(s.log().mean(), torch.tensor(0.0, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close((x / s) @ (w * s).T, x @ w.T, rtol=0, atol=1e-9)


def test_strength_moves_the_burden() -> None:
    x, w = data(8)
    ratio = rms(x / diagonal_balance(rms(x), rms(w), strength=1.0))
    torch.testing.assert_close(ratio, ratio[0].expand(8))
    ratio = rms(w * diagonal_balance(rms(x), rms(w), strength=0.0))
    torch.testing.assert_close(ratio, ratio[0].expand(8))


def test_dead_channels_stay_as_they_are() -> None:
    s = diagonal_balance(torch.tensor([0.0, 4.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 4.0]))
    torch.testing.assert_close(s, torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    assert torch.equal(diagonal_balance(torch.zeros(3), torch.ones(3)), torch.ones(3, dtype=torch.float64))
    faint = diagonal_balance(torch.tensor([1e-30, 1.0, 1.0]), torch.ones(3))
    assert float(faint.min()) > 1e-3


@pytest.mark.parametrize("n", [5, 12])
def test_dense_balance_diagonalizes_both_moments_to_the_same(n: int) -> None:
    x, w = data(n)
    transform = dense_balance(moment(x), moment(w), damping=0.0)
    first, second = moment(transform(x)), moment(transform.inverse_transpose(w))
    first, second = first * n / moment(x).trace(), second * n / moment(w).trace()
    torch.testing.assert_close(first, second, rtol=0, atol=1e-10)
    torch.testing.assert_close(first, torch.diag(first.diagonal()), rtol=0, atol=1e-10)
    torch.testing.assert_close(transform(x) @ transform.inverse_transpose(w).T, x @ w.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("brake", [0.3, 0.6, 1.0])
def test_brake_leaves_powers_of_what_both_would_have(brake: float) -> None:
    c, m = (unit_trace(moment(part)) for part in data(7))
    full, held = (dense_balance(c, m, damping=0.0, brake=one).matrix() for one in (1.0, brake))
    both = (full.T @ c @ full).diagonal()
    torch.testing.assert_close(held.T @ c @ held, both.pow(2 - brake).diag(), rtol=0, atol=1e-8)
    inverse = torch.linalg.inv(held)
    torch.testing.assert_close(inverse @ m @ inverse.T, both.pow(brake).diag(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("brake", [0.0, 1.5])
def test_brake_out_of_range_is_refused(brake: float) -> None:
    c, m = (moment(part) for part in data(4))
    with pytest.raises(ValueError, match="brake"):
        dense_balance(c, m, brake=brake)


def test_block_balance_equals_dense_balance_of_each_block() -> None:
    x, w = data(12)
    transform = block_balance(moment(x), moment(w), 4, damping=0.0)
    first, second = unit_trace(moment(x)), unit_trace(moment(w))
    t, t_inverse = transform.matrix(), torch.linalg.inv(transform.matrix())
    for at in (0, 4, 8):
        block = slice(at, at + 4)
        torch.testing.assert_close(
            (t.T @ first @ t)[block, block], (t_inverse @ second @ t_inverse.T)[block, block], rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 12])
def test_low_rank_balance_equates_both_moments_on_its_directions(rank: int, scaled: bool) -> None:
    x, w = data(12)
    s = diagonal_balance(rms(x), rms(w)) if scaled else None
    transform = low_rank_balance(moment(x), moment(w), rank, s, damping=0.0)
    divisor = torch.ones(12, dtype=torch.float64) if s is None else s
    c, m = unit_trace(moment(x / divisor)), unit_trace(moment(w * divisor))
    dense = torch.diag(divisor) @ transform.matrix()  # I + U (P - I) U^T
    values, vectors = torch.linalg.eigh(c - m)
    u = vectors[:, values.abs().argsort(descending=True)[:rank]]
    torch.testing.assert_close(transform.get_buffer("basis").abs(), u.abs(), rtol=0, atol=1e-9)
    inverse = torch.linalg.inv(dense)
    torch.testing.assert_close(u.T @ dense.T @ c @ dense @ u, u.T @ inverse @ m @ inverse.T @ u, rtol=0, atol=1e-10)
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-12)  # a stretch, with no rotation in it
    assert float(torch.linalg.eigvalsh(dense).min()) > 0
    rest = torch.eye(12, dtype=torch.float64) - u @ u.T
    torch.testing.assert_close(rest @ dense, rest, rtol=0, atol=1e-12)
    torch.testing.assert_close(transform(x) @ transform.inverse_transpose(w).T, x @ w.T, rtol=0, atol=1e-8)
    assert transform.macs() == 2 * 12 * rank + (12 if scaled else 0)


def test_lanczos_finds_the_leading_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = data(64)
    x[:, :5] *= torch.tensor([30.0, 20, 12, 8, 6])  # as calibration has them
    exact = low_rank_balance(moment(x), moment(w), 4).matrix()
    monkeypatch.setattr("sq.rotation.balance.DIRECT", 10)
    found = low_rank_balance(OfRows(x.float()), OfRows(w.float()), 4).matrix()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)


def test_lanczos_comes_close_where_no_direction_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = data(64)
    c, m = (unit_trace(moment(part)) for part in (x, w))
    largest = torch.linalg.eigvalsh(c - m).abs().sort(descending=True).values[:4].sum()
    monkeypatch.setattr("sq.rotation.balance.DIRECT", 10)
    basis = low_rank_balance(c, m, 4, damping=0.0).directions()
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(basis.T @ (c - m) @ basis).abs().sum() > 0.97 * largest


def test_damping_serves_fewer_tokens_than_features() -> None:
    x, w = data(12)
    few = moment(x[:3])
    with pytest.raises((CalibrationError, ValueError)):
        dense_balance(few, moment(w), damping=0.0)
    transform = dense_balance(few, moment(w))
    torch.testing.assert_close(transform(x) @ transform.inverse_transpose(w).T, x @ w.T, rtol=0, atol=1e-8)
    assert torch.isfinite(low_rank_balance(few, moment(w), 4).matrix()).all()


def test_bad_input_is_refused() -> None:
    good, c = torch.ones(3), torch.eye(3)
    with pytest.raises(ValueError, match="strength 2"):
        diagonal_balance(good, good, strength=2)
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        diagonal_balance(good, torch.ones(4))
    with pytest.raises(CalibrationError, match="activation rms"):
        diagonal_balance(good * torch.nan, good)
    with pytest.raises(CalibrationError, match="weight rms"):
        diagonal_balance(good, -good)
    with pytest.raises(ValueError, match="rank 4 for 3 features"):
        low_rank_balance(c, c, 4)
    with pytest.raises(CalibrationError, match="activation second moment"):
        low_rank_balance(c * 0, c, 1)
    with pytest.raises(CalibrationError, match="weight second moment"):
        dense_balance(c, c * torch.nan)
    with pytest.raises(ValueError, match="must divide 3"):
        block_balance(c, c, 2)
    with pytest.raises(ValueError, match=r"\(n, n\)"):
        dense_balance(torch.ones(3, 4), c)
