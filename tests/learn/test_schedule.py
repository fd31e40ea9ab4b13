"""Learning rates by hand, and the order of windows."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sq.learn.schedule import decayed, windows_of_step


def test_rates_by_hand() -> None:
    """cos(pi / 3) = 1/2 and cos(pi / 2) = 0."""
    assert [decayed(2.0, "linear", step, 4) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert [decayed(2.0, "cosine", step, 6) for step in (0, 2, 3)] == pytest.approx([2.0, 1.5, 1.0])
    with pytest.raises(ValueError, match="decay='constant'; allowed: linear, cosine"):
        decayed(1.0, "constant", 0, 1)  # type: ignore[arg-type]


@given(count=st.integers(1, 12), batch=st.integers(1, 15), seed=st.integers(0, 5))
def test_every_window_is_dealt_before_any_is_dealt_again(count: int, batch: int, seed: int) -> None:
    batch = min(batch, count)
    if count % batch:
        return
    turns = count // batch
    steps = [windows_of_step(step, batch, count, seed) for step in range(3 * turns)]
    for turn in range(3):
        dealt = [window for step in steps[turn * turns : (turn + 1) * turns] for window in step]
        assert sorted(dealt) == list(range(count))


@given(count=st.integers(1, 12), batch=st.integers(1, 15), seed=st.integers(0, 5))
def test_windows_of_a_step_differ_and_over_time_all_are_used_alike(count: int, batch: int, seed: int) -> None:
    used: Counter[int] = Counter()
    for step in range(4 * count):
        windows = windows_of_step(step, batch, count, seed)
        assert 1 <= len(set(windows)) == len(windows) <= min(batch, count)
        used.update(windows)
    assert set(used) == set(range(count))


def test_order_follows_the_seed() -> None:
    assert windows_of_step(0, 8, 64, 0) != windows_of_step(0, 8, 64, 1)
    assert windows_of_step(7, 8, 64, 3) == windows_of_step(7, 8, 64, 3)
    assert windows_of_step(0, 8, 64, 0) != windows_of_step(8, 8, 64, 0), "a new deal has another order"
