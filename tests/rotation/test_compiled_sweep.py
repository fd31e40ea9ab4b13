"""The compiled sweeps of the fourth-moment rotation against those in torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sq.rotation import compiled_sweep, kurtosis_rotation
from sq.rotation import kurtosis as kurtosis_module


def in_torch(x: Tensor, sweeps: int = 1) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kurtosis_module, "compiled_sweeps", lambda *_: None)
        return kurtosis_rotation(x, sweeps, unit_tokens=False)


def moment(x: Tensor, rotation: Tensor) -> float:
    return float((x.double() @ rotation).pow(4).sum())


def assert_orthogonal(rotation: Tensor) -> None:
    identity = torch.eye(len(rotation), dtype=torch.float64)
    torch.testing.assert_close(rotation @ rotation.T, identity, rtol=0, atol=1e-10)


def gaussian(tokens: int, m: int) -> Tensor:
    return torch.randn(tokens, m) @ torch.randn(m, m) / m**0.5


def heavy(tokens: int, m: int) -> Tensor:
    return torch.randn(tokens, m) ** 3


def zero_rows(tokens: int, m: int) -> Tensor:
    x = gaussian(tokens, m)
    x[:, ::3] = 0  # channels
    x[1::4] = 0  # tokens
    return x


@pytest.mark.parametrize("samples", [gaussian, heavy, zero_rows])
@pytest.mark.parametrize(
    ("tokens", "m"), [(3000, 64), (2049, 33), (700, 2), (700, 3), (10, 40), (1, 5), (5, 2)],
    ids=["slices", "odd", "two", "three", "few-tokens", "one-token", "two-few"],
)  # fmt: skip
def test_moment_is_that_of_torch(samples: Callable[[int, int], Tensor], tokens: int, m: int) -> None:
    x = samples(tokens, m)
    before = moment(x, torch.eye(m, dtype=torch.float64))
    for sweeps in (1, 2):
        found, expected = kurtosis_rotation(x, sweeps, unit_tokens=False), in_torch(x, sweeps)
        assert_orthogonal(found)
        after = moment(x, found)
        assert after <= before * (1 + 1e-6)
        assert after == pytest.approx(moment(x, expected), rel=1e-3)
        before = after


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 2100), m=st.integers(1, 20), sweeps=st.integers(0, 3), seed=st.integers(0, 99))
def test_never_rises(tokens: int, m: int, sweeps: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = heavy(tokens, m)
    found = kurtosis_rotation(x, sweeps, unit_tokens=False)
    assert found.shape == (m, m)
    assert found.dtype == torch.float64
    assert_orthogonal(found)
    assert moment(x, found) <= moment(x, torch.eye(m, dtype=torch.float64)) * (1 + 1e-6)


def test_one_sweep_is_the_same_matrix() -> None:
    x = heavy(2500, 12)
    torch.testing.assert_close(kurtosis_rotation(x, unit_tokens=False), in_torch(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("m", [11, 12])
def test_threads_change_nothing_but_digits(monkeypatch: pytest.MonkeyPatch, m: int) -> None:
    x, before = heavy(2500, m), torch.get_num_threads()
    alone = kurtosis_rotation(x, 2)
    monkeypatch.setattr(compiled_sweep, "ENTRIES_PER_THREAD", 1)
    torch.set_num_threads(5)  # for three slices: two threads have R alone
    try:
        found = kurtosis_rotation(x, 2)
    finally:
        torch.set_num_threads(before)
    assert_orthogonal(found)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_samples_keep_their_values() -> None:
    rows = heavy(50, 6).T[None].contiguous()
    before = rows.clone()
    assert compiled_sweep.compiled_sweeps(rows, 1, kurtosis_module._round_robin(6)) is not None
    assert torch.equal(rows, before)


def test_float64_and_other_devices_take_the_form_in_torch() -> None:
    following = kurtosis_module._round_robin(6)
    assert compiled_sweep.compiled_sweeps(torch.ones(1, 6, 9, dtype=torch.float64), 1, following) is None
    assert compiled_sweep.compiled_sweeps(torch.ones(1, 6, 9, device="meta"), 1, following) is None
    x = heavy(50, 6).double()
    assert torch.equal(kurtosis_rotation(x, unit_tokens=False), in_torch(x))


def test_a_missing_library_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    x = heavy(50, 6)
    expected = in_torch(x)
    compiled_sweep._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level(logging.INFO, "sq"):
        found = [kurtosis_rotation(x, unit_tokens=False) for _ in range(2)]
    compiled_sweep._compiled.cache_clear()
    assert torch.equal(found[0], expected)
    assert caplog.text.count("numba is not installed: fourth-moment rotations") == 1
