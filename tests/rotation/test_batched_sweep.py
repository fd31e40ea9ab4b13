"""Many sets of samples at once against one after the other, and the choice of who sweeps."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from sq.errors import CalibrationError
from sq.rotation import compiled_sweep, kurtosis_rotation, kurtosis_rotations, launched_sweep
from sq.rotation import kurtosis as kurtosis_module


def heavy(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) ** 3


def one_by_one(x: Tensor, **options: Any) -> Tensor:
    return torch.stack([kurtosis_rotation(part, **options) for part in x])


@pytest.mark.parametrize("shape", [(4, 2500, 12), (3, 700, 7), (5, 40, 2), (1, 30, 6), (2, 9, 1)], ids=str)
@pytest.mark.parametrize("unit_tokens", [True, False], ids=["unit", "raw"])
def test_compiled_batch_is_its_parts_bit_for_bit(shape: tuple[int, int, int], unit_tokens: bool) -> None:
    options: dict[str, Any] = {"sweeps": 2, "unit_tokens": unit_tokens}
    x = heavy(*shape)
    assert torch.equal(kurtosis_rotations(x, **options), one_by_one(x, **options))
    views = heavy(shape[1], shape[0], shape[2]).transpose(0, 1)  # heads as attention has them
    assert torch.equal(kurtosis_rotations(views, **options), one_by_one(views, **options))


@pytest.mark.parametrize("entries", [1, 3000 * 6, 3000 * 6 * 4], ids=["slices and sets", "slices", "sets"])
def test_compiled_batch_on_threads_is_its_parts_bit_for_bit(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    x, before = heavy(8, 3000, 6), torch.get_num_threads()
    monkeypatch.setattr(compiled_sweep, "ENTRIES_PER_THREAD", entries)
    torch.set_num_threads(4)
    try:
        assert torch.equal(kurtosis_rotations(x), one_by_one(x))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(4, 900, 12), (3, 700, 7), (2, 5, 3)], ids=str)
def test_batch_in_torch_is_its_parts(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]) -> None:
    x = heavy(*shape).double()
    torch.testing.assert_close(kurtosis_rotations(x, 2), one_by_one(x, sweeps=2), rtol=0, atol=1e-12)
    monkeypatch.setattr(kurtosis_module, "SLICE", 1)
    torch.testing.assert_close(kurtosis_rotations(x, 2), one_by_one(x, sweeps=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [2, 3, 5, 8, 9])
def test_steps_of_a_sweep_meet_every_pair_once(m: int) -> None:
    steps = launched_sweep.pairs_of_steps(m, kurtosis_module._round_robin(m + m % 2))
    assert steps.shape == (m - 1 + m % 2, 2, m // 2)
    met = [frozenset(pair) for step in steps for pair in step.T.tolist()]
    assert len(set(met)) == len(met) == m * (m - 1) // 2
    assert all(len(set(step.flatten().tolist())) == step.numel() for step in steps)  # disjoint
    assert int(steps.min()) == 0
    assert int(steps.max()) == m - 1


def test_launches_take_what_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = torch.randn(2, 6, 6, dtype=torch.float64)
    monkeypatch.setattr(kurtosis_module, "compiled_sweeps", lambda *_: None)
    monkeypatch.setattr(kurtosis_module, "launched_sweeps", lambda *_: turned)
    assert torch.equal(kurtosis_rotations(heavy(2, 20, 6)), turned.mT)


def test_a_device_without_launches_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    rows, following = torch.ones(1, 6, 9, device="meta"), kurtosis_module._round_robin(6)
    launched_sweep._say_torch.cache_clear()
    with caplog.at_level(logging.INFO, "sq"):
        assert [launched_sweep.launched_sweeps(rows, 1, following) for _ in range(2)] == [None, None]
        assert launched_sweep.launched_sweeps(torch.ones(1, 6, 9), 1, following) is None
    assert caplog.text.count("fourth-moment rotations of float32 on meta run in torch") == 1
    assert "on cpu" not in caplog.text


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        kurtosis_rotations(torch.ones(3, 4))
    with pytest.raises(ValueError, match="-1 sweeps"):
        kurtosis_rotations(torch.ones(1, 3, 4), -1)
    with pytest.raises(CalibrationError, match="NaN or inf in 1 of 6 tokens, first in 4"):
        kurtosis_rotations(torch.ones(2, 3, 4).index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(torch.nan)))
