"""The compiled clip search finds what the search in torch finds, and compiled rounding rounds as torch does."""

from __future__ import annotations

import logging
import sys
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sq.formats.catalog  # noqa: F401  (registers the formats)
from sq.formats import activation, clip_search, compiled, compiled_rows
from sq.formats.activation import ActivationQuantizer, Clip
from sq.formats.clip_search import searched_grid
from sq.formats.compiled import power_sums, residual_sums
from sq.formats.elements import E2M1, E4M3, SCHEMES, Element, GridName
from sq.formats.format import Format, integer, named
from sq.formats.grid import second_scale

CLIPS = [1 - i / 100 for i in range(80)]


def in_torch(rows: torch.Tensor, format: Format, norm: float, second: torch.Tensor | None = None) -> clip_search.Grid:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_search, "residual_sums", lambda *_: None)
        patch.setattr(clip_search, "power_sums", lambda *_: None)
        return searched_grid(rows, format, CLIPS, norm=norm, second=second)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70), n=st.integers(1, 200), bits=st.integers(2, 8), seed=st.integers(0, 999),
    scheme=st.sampled_from(["symmetric", "asymmetric", "midrise"]), norm=st.sampled_from([2.0, 2.4, 3.0]),
    tail=st.floats(0, 3),
)  # fmt: skip
def test_the_same_clips(rows: int, n: int, bits: int, seed: int, scheme: str, norm: float, tail: float) -> None:
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    x = x.sign() * x.abs().pow(1 + tail)
    found, expected = (
        searched_grid(x, integer(bits, scheme), CLIPS, norm=norm),
        in_torch(x, integer(bits, scheme), norm),
    )
    if n >= 16:
        assert torch.equal(found.scale, expected.scale)
    # Of short rows several clips may leave no error at all: one is as good as another.
    costs = [(x.double() - grid.fake(x).double()).abs().pow(norm).sum(1) for grid in (found, expected)]
    torch.testing.assert_close(*costs, rtol=1e-5, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 40), groups=st.integers(1, 4), seed=st.integers(0, 999), tail=st.floats(0, 3),
    name=st.sampled_from(["mxfp4", "nvfp4", "mxfp8"]), norm=st.sampled_from([2.4, 3.0]),
)  # fmt: skip
def test_the_same_clips_of_floating_point(
    rows: int, groups: int, seed: int, tail: float, name: str, norm: float
) -> None:
    format = named(name)
    assert format.group is not None
    x = torch.randn(rows * groups, format.group, generator=torch.Generator().manual_seed(seed))
    x = x.sign() * x.abs().pow(1 + tail)
    second = second_scale(x.abs().amax().expand(len(x), 1), format)
    found = searched_grid(x, format, CLIPS, norm=norm, second=second)
    expected = in_torch(x, format, norm, second)
    costs = [(x.double() - grid.fake(x).double()).abs().pow(norm).sum(1) for grid in (found, expected)]
    torch.testing.assert_close(*costs, rtol=1e-5, atol=1e-12)


def test_rows_of_zeros_and_of_nan() -> None:
    x = torch.randn(4, 9)
    x[1], x[2, 3] = 0, float("nan")
    found, expected = searched_grid(x, integer(4), CLIPS), in_torch(x, integer(4), 2.0)
    for row in (0, 1, 3):
        assert torch.equal(found.scale[row], expected.scale[row])


@pytest.mark.parametrize("threads", [1, 3])
def test_sums_are_those_of_float64(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    x, step = torch.randn(300, 37), torch.rand(300, 5) + 0.1
    found = residual_sums(x, step, None, integer(4).element)
    torch.set_num_threads(before)
    assert found is not None
    v = x.double()[:, None] / step.double()[..., None]
    error = v - v.round().clamp(-8, 7)
    torch.testing.assert_close(found[0].double(), error.square().sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1].double(), error.abs().sum(-1), rtol=1e-4, atol=1e-4)


def test_what_is_not_compiled_runs_in_torch_and_a_missing_library_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x, step = torch.randn(3, 32), torch.ones(3, 2)
    unknown = Mock(spec=Element)
    assert residual_sums(x, step, None, unknown) is None
    assert power_sums(x, torch.tensor([0]), step[0, :1], None, unknown, 2.4) is None
    compiled._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level(logging.INFO, "sq"):
        assert residual_sums(x, step, None, integer(4).element) is None
    compiled._compiled.cache_clear()
    assert "numba is not installed" in caplog.text


@pytest.mark.parametrize("element", [integer(4, scheme).element for scheme in SCHEMES] + [E2M1, E4M3])
@pytest.mark.parametrize("threads", [1, 3])
def test_powers_are_those_of_float64(threads: int, element: Element) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    x, row = torch.randn(50, 37), torch.arange(50).repeat(6)
    x[3] = 0
    step = torch.rand(300) * torch.logspace(-4, 2, 300) + 1e-4  # far inside and far outside the range of codes
    zero = torch.randint(0, 16, (300,)).float() if element.has_zero else None
    try:
        sums = power_sums(x, row, step, zero, element, 2.4)
    finally:
        torch.set_num_threads(before)
    assert sums is not None
    v = x[row] * step.reciprocal()[:, None]
    error = element.residual_(v, None if zero is None else zero[:, None], torch.empty_like(v)).double()
    torch.testing.assert_close(sums.double(), error.abs().pow(2.4).sum(1), rtol=2e-5, atol=1e-9)


def test_powers_of_other_norms_are_left_to_torch() -> None:
    assert power_sums(torch.randn(2, 8), torch.tensor([0]), torch.ones(1), None, integer(4).element, 3.0) is None


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(64, 300), n=st.integers(256, 700), bits=st.integers(2, 8), seed=st.integers(0, 999),
    scheme=st.sampled_from(["symmetric", "asymmetric", "midrise", "full_range"]),
    clip=st.sampled_from([1.0, 0.8, (0.9, 0.7), "search"]), group=st.booleans(), broken=st.booleans(),
)  # fmt: skip
def test_tokens_are_rounded_as_in_torch(
    rows: int, n: int, bits: int, seed: int, scheme: GridName, clip: Clip, group: bool, broken: bool
) -> None:
    """To the last bit: rows of zeros, of one value, of one sign, of NaN and infinities among them."""
    quantizer = ActivationQuantizer(integer(bits, scheme, n if group else None), clip)
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)).pow_(3)
    x[0], x[1], x[2], x[3] = 0.0, -2.5, x[2].abs(), -x[3].abs()
    x[4], x[5, 1:] = -0.0, 0.0
    x[6], x[7] = x[6] * 1e-41, x[7] * 1e35
    if broken:
        for row, value in enumerate((torch.nan, -torch.nan, torch.inf, -torch.inf)):
            x[8 + row, seed % n] = value
    calls = Mock(wraps=activation.round_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation, "round_rows", calls)
        found = quantizer(x)
        patch.setattr(activation, "takes_rows", lambda *_: False)
        expected = quantizer(x)
    assert calls.call_count == 1
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(found.signbit() | found.isnan(), expected.signbit() | expected.isnan())


@pytest.mark.parametrize("other", ["few", "bfloat16", "float"])
def test_what_is_rounded_in_torch(other: str) -> None:
    rows = torch.randn(200, 300)
    element = integer(4).element
    assert compiled_rows.takes_rows(rows, element)
    rows, element = {
        "few": (rows[:2], element),
        "bfloat16": (rows.bfloat16(), element),
        "float": (rows, E2M1),
    }[other]
    assert not compiled_rows.takes_rows(rows, element)


def test_ends_of_a_part_of_a_wider_tensor() -> None:
    rows = torch.randn(200, 500)[:, 3:403]
    low, high = compiled_rows.row_ends(rows)
    assert torch.equal(low, rows.amin(1, keepdim=True))
    assert torch.equal(high, rows.amax(1, keepdim=True))
