"""The compiled walk over a block's columns gives what the walk in torch gives."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.formats.format import Scheme, integer
from sq.formats.weight import WeightQuantizer
from sq.quantize.rounders import block_walk
from sq.quantize.rounders.block_walk import walk_block


def walked(compiled: bool, scheme: Scheme, bits: int, columns: int, rows: int, groups: int, pulled: bool) -> Any:
    generator = torch.Generator().manual_seed(columns * rows)
    weight = torch.randn(rows, columns * groups, generator=generator)
    grid = WeightQuantizer(integer(bits, scheme, columns), clip=1.0).grid(weight)
    own = [j % groups for j in range(columns)]
    factor = torch.randn(columns, columns, generator=generator).triu() / columns + 1.5 * torch.eye(columns)
    pull = torch.randn(columns, columns, generator=generator).triu(1) / columns if pulled else None
    block = weight[:, :columns].T.contiguous()
    codes, errors = torch.empty(columns, rows, dtype=grid.format.element.code_dtype), torch.empty(columns, rows)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(block_walk, "_compiled", lambda: None)
        walk_block(block, grid, own, factor, pull, codes, errors)
    return block, codes, errors


@settings(max_examples=30, deadline=None)
@given(
    scheme=st.sampled_from(["symmetric", "asymmetric", "midrise"]), bits=st.integers(2, 8),
    columns=st.integers(1, 40), rows=st.integers(1, 300), groups=st.integers(1, 3), pulled=st.booleans(),
)  # fmt: skip
def test_is_the_walk_in_torch(scheme: Scheme, bits: int, columns: int, rows: int, groups: int, pulled: bool) -> None:
    found = walked(True, scheme, bits, columns, rows, groups, pulled)
    expected = walked(False, scheme, bits, columns, rows, groups, pulled)
    same = (found[1] == expected[1]).all(0)  # of a row: once a near tie falls elsewhere, later columns differ
    assert float(same.float().mean()) > 0.98
    torch.testing.assert_close(found[0][:, same], expected[0][:, same], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2][:, same], expected[2][:, same], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads: int) -> None:
    before = torch.get_num_threads()
    expected = walked(True, "asymmetric", 4, 16, 700, 2, True)
    torch.set_num_threads(threads)
    try:
        found = walked(True, "asymmetric", 4, 16, 700, 2, True)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_numba_torch_takes_over_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    block_walk._compiled.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            found = walked(True, "symmetric", 4, 8, 20, 1, False)
    finally:
        block_walk._compiled.cache_clear()
    assert "numba is not installed" in caplog.text
    expected = walked(False, "symmetric", 4, 8, 20, 1, False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
