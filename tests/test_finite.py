"""One pass finds what torch.isfinite finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sq.finite import all_finite

BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(size=st.integers(1, 300), bad=st.lists(st.tuples(st.integers(0, 299), st.sampled_from(BAD)), max_size=3))
def test_is_isfinite(dtype: torch.dtype, size: int, bad: list[tuple[int, float]]) -> None:
    x = torch.linspace(-1, 1, size).to(dtype) * torch.finfo(dtype).max
    for place, value in bad:
        x[place % size] = value
    assert all_finite(x / 4) == bool(torch.isfinite(x / 4).all())


def test_the_whole_range_is_finite() -> None:
    largest = torch.finfo(torch.float32).max
    assert all_finite(torch.tensor([largest, -largest]))


def test_nothing_and_integers_are_finite() -> None:
    assert all_finite(torch.empty(0, 3))
    assert all_finite(torch.tensor([1, 2]))
