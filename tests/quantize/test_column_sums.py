"""Sums of squares and peaks of channels, compiled and in torch, against float64."""

from __future__ import annotations

import pytest
import torch

from sq.quantize import column_sums as module
from sq.quantize.column_sums import column_sums


@pytest.mark.parametrize("least", [0, 2**60], ids=["compiled", "torch"])
@pytest.mark.parametrize(("tokens", "n"), [(1, 1), (3, 7), (64, 16), (4097, 33)])
@pytest.mark.parametrize("threads", [1, 2])
def test_sums_and_peaks(monkeypatch: pytest.MonkeyPatch, least: int, tokens: int, n: int, threads: int) -> None:
    monkeypatch.setattr(module, "LEAST", least)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(tokens)) * torch.logspace(-3, 3, n)
        square, peak = column_sums(x)
    finally:
        torch.set_num_threads(before)
    assert (square.dtype, peak.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(square, x.double().square().sum(0), rtol=2e-6, atol=0)
    assert torch.equal(peak, x.abs().amax(0))


@pytest.mark.parametrize("least", [0, 2**60], ids=["compiled", "torch"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_not_finite_shows_in_its_column_alone(monkeypatch: pytest.MonkeyPatch, least: int, bad: float) -> None:
    monkeypatch.setattr(module, "LEAST", least)
    x = torch.ones(2000, 5)
    x[1234, 3] = bad
    square, _ = column_sums(x)
    assert torch.isfinite(square).tolist() == [True, True, True, False, True]


def test_rows_that_are_not_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 9)
    monkeypatch.setattr(module, "LEAST", 0)
    square, peak = column_sums(x.T)
    torch.testing.assert_close(square, x.double().square().sum(1), rtol=2e-6, atol=0)
    assert torch.equal(peak, x.abs().amax(1))
