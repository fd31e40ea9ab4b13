"""Grids against scalar float64 loops written from the formulas, and properties that hold for any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizers import row_format
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.elements import SCHEMES, Scheme
from sq.formats.format import integer
from sq.formats.grid import row_grid
from sq.kernels.grid import code_range

ALL_BITS = range(2, 9)


def reference_row(
    row: list[float], bits: int, scheme: Scheme, clip: float, include_zero: bool
) -> tuple[list[int], list[float]]:
    """Codes and values of one row, entry by entry in float64 on float32 scale and zero."""
    single = np.float32
    if scheme == "asymmetric":
        low, high = min(row), max(row)
        if include_zero:
            low, high = min(low, 0.0), max(high, 0.0)
        low, high = single(low) * single(clip), single(high) * single(clip)
        if low == 0 and high == 0:
            low, high = single(-1), single(1)
        scale = (high - low) / single(2**bits - 1)
        zero = round(float(-low / scale))
        codes = [min(max(round(float(single(x) / scale)) + zero, 0), 2**bits - 1) for x in row]
        return codes, [(q - zero) * float(scale) for q in codes]
    peak = single(max(abs(x) for x in row)) * single(clip)
    bottom, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if scheme == "symmetric":
        scale = peak / single(top) if peak else single(1)
        codes = [min(max(round(float(single(x) / scale)), bottom), top) for x in row]
        return codes, [q * float(scale) for q in codes]
    scale = peak / single((2**bits - 1) / 2)
    codes = [min(max(math.floor(single(x) / scale), bottom), top) for x in row]
    return codes, [(2 * q + 1) * float(scale) / 2 for q in codes]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("clip", [1.0, 0.7])
@pytest.mark.parametrize("include_zero", [True, False])
def test_codes_and_values_equal_the_scalar_reference(
    bits: int, scheme: Scheme, clip: float, include_zero: bool
) -> None:
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(bits)) * torch.logspace(-3, 3, 7)[:, None]
    x[2] = x[2].abs() + 5 * x[2].abs().max()  # all positive: include_zero matters
    x[3] = -x[3].abs()
    grid = row_grid(x, row_format(bits, scheme, include_zero), clip)
    codes = grid.encode(x)
    values = grid.fake(x)
    for i in range(x.shape[0]):
        want_codes, want_values = reference_row(x[i].tolist(), bits, scheme, clip, include_zero)
        assert codes[i].tolist() == want_codes
        np.testing.assert_allclose(values[i].numpy(), want_values, rtol=3e-6, atol=0)


def test_four_bit_levels_by_hand() -> None:
    x = torch.tensor([[-7.5, -1.0, 0.25, 7.5]])
    assert row_grid(x, integer(4, "midrise")).scale.item() == 1.0
    assert row_grid(x, integer(4, "midrise")).fake(x).tolist() == [[-7.5, -0.5, 0.5, 7.5]]
    x = torch.tensor([[-7.0, -0.5, 1.5, 2.5]])  # ties go to even
    assert row_grid(x, integer(4, "symmetric")).encode(x).tolist() == [[-7, 0, 2, 2]]
    x = torch.tensor([[-5.0, 10.0]])
    grid = row_grid(x, integer(4, "asymmetric"))
    assert grid.zero is not None
    assert (grid.scale.item(), grid.zero.item(), grid.encode(x).tolist()) == (1.0, 5.0, [[0, 15]])


def test_symmetric_clipping_reaches_the_lowest_code() -> None:
    x = torch.tensor([[-10.0, 10.0, 0.0]])
    assert row_grid(x, integer(4, "symmetric"), 0.5).encode(x).tolist() == [[-8, 7, 0]]


def test_midrise_outermost_level_is_the_clipped_peak() -> None:
    x = torch.randn(5, 64)
    for bits in ALL_BITS:
        grid = row_grid(x, integer(bits, "midrise"), 0.9)
        low, high = code_range(bits, "midrise")
        ends = grid.decode_(torch.tensor([[low, high]]).float().repeat(5, 1))
        peak = 0.9 * x.abs().amax(1)
        torch.testing.assert_close(ends, torch.stack((-peak, peak), 1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_without_spread(scheme: Scheme) -> None:
    x = torch.tensor([[0.0] * 4, [3.0] * 4, [-2.0] * 4, [1e-45] * 4])
    for include_zero in (True, False):
        grid = row_grid(x, row_format(4, scheme, include_zero))
        assert (grid.scale > 0).all()
        torch.testing.assert_close(grid.fake(x), x, rtol=1e-6, atol=1e-29)
    if scheme == "symmetric":
        assert grid.scale[0].item() == 1.0
    if scheme == "asymmetric":
        assert grid.scale[0].item() == pytest.approx(2 / 15)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_not_hidden(scheme: Scheme, bad: float) -> None:
    x = torch.randn(3, 8)
    x[1, 4] = bad
    result = row_grid(x, integer(4, scheme)).fake(x)
    assert not result[1].isfinite().any()
    assert result[[0, 2]].isfinite().all()


def rows(draw: st.DrawFn) -> Tensor:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 17)))
    seed = draw(st.integers(0, 2**31))
    scale = 10.0 ** draw(st.integers(-6, 6))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


CASES = st.tuples(st.composite(rows)(), st.integers(2, 8), st.sampled_from(SCHEMES), st.sampled_from([1.0, 0.9, 0.5]))


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_error_is_at_most_half_a_step_inside_the_range(case: tuple[Tensor, int, Scheme, float]) -> None:
    x, bits, scheme, clip = case
    grid = row_grid(x, integer(bits, scheme), clip)
    low, high = code_range(bits, scheme)
    ends = grid.decode_(torch.tensor([[low, high]]).float().repeat(x.shape[0], 1))
    reach = grid.scale * (0.5 + 1e-4)
    inside = (x >= ends[:, :1] - reach) & (x <= ends[:, 1:] + reach)
    error = (grid.fake(x) - x).abs()
    assert (error <= reach + 1e-30)[inside].all()
    assert inside.all() or clip < 1


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_values_on_the_grid_stay_where_they_are(case: tuple[Tensor, int, Scheme, float]) -> None:
    x, bits, scheme, clip = case
    grid = row_grid(x, integer(bits, scheme), clip)
    once = grid.fake(x)
    assert torch.equal(grid.fake(once), once)
    if clip == 1 and scheme != "asymmetric":  # the peak is a level, so the grid of the result is the same grid
        again = row_grid(once, integer(bits, scheme))
        assert torch.equal(again.encode(once), grid.encode(x))


@settings(max_examples=40, deadline=None)
@given(CASES, st.randoms())
def test_rows_do_not_see_each_other(case: tuple[Tensor, int, Scheme, float], random: object) -> None:
    x, bits, scheme, clip = case
    order = torch.randperm(x.shape[0])
    assert torch.equal(
        row_grid(x[order], integer(bits, scheme), clip).fake(x[order]),
        row_grid(x, integer(bits, scheme), clip).fake(x)[order],
    )


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_signed_grids_are_odd_functions(case: tuple[Tensor, int, Scheme, float]) -> None:
    x, bits, scheme, clip = case
    if scheme == "asymmetric":
        return
    grid = row_grid(x, integer(bits, scheme), clip)
    ties = (
        x / grid.scale == torch.round(x / grid.scale) if scheme == "midrise" else torch.zeros_like(x, dtype=torch.bool)
    )
    if scheme == "symmetric":  # the unpaired lowest code
        x = x.clamp(-clip * x.abs().amax(1, keepdim=True), clip * x.abs().amax(1, keepdim=True))
    assert torch.equal(grid.fake(-x)[~ties], -grid.fake(x)[~ties])


@pytest.mark.parametrize(("bits", "scheme"), [(1, "symmetric"), (9, "symmetric"), (0, "midrise"), (4, "nf4")])
def test_what_is_not_offered_is_named(bits: int, scheme: str) -> None:
    with pytest.raises(QuantizationError, match=str(bits) if scheme != "nf4" else "nf4"):
        integer(bits, scheme)  # type: ignore[arg-type]
