"""FP4 and FP8 numbers against the package ml_dtypes: every code, every midpoint, and what lies beyond the largest."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sq.errors import QuantizationError
from sq.formats.elements import E2M1, E4M3, Floats, Integers
from sq.formats.scales import E4M3_SCALE, E8M0_SCALE, FLOAT16_SCALE, FLOAT32_SCALE

NUMBERS = [(E2M1, ml_dtypes.float4_e2m1fn), (E4M3, ml_dtypes.float8_e4m3fn)]


def reference_values(dtype: type) -> NDArray[np.float32]:
    """The number of every bit pattern, by ml_dtypes."""
    patterns = np.arange(2 ** (4 if dtype is ml_dtypes.float4_e2m1fn else 8), dtype=np.uint8)
    return patterns.view(dtype).astype(np.float32)


def reference(x: torch.Tensor, element: Floats, dtype: type) -> torch.Tensor:
    """x rounded by ml_dtypes; it turns what is beyond E4M3's largest number into NaN, where a quantizer saturates."""
    bounded = x.clamp(-element.largest, element.largest)
    return torch.from_numpy(bounded.numpy().astype(dtype).astype(np.float32))


def neighbours(element: Floats) -> torch.Tensor:
    """Every number, every midpoint of two neighbours, and the float32 numbers next to each midpoint."""
    numbers = torch.tensor(sorted({value for value in element.values() if value == value}))
    middles = (numbers[1:] + numbers[:-1]) / 2
    infinity = torch.tensor(torch.inf)
    return torch.cat([numbers, middles, middles.nextafter(infinity), middles.nextafter(-infinity)])


@pytest.mark.parametrize(("element", "dtype"), NUMBERS, ids=["e2m1", "e4m3"])
def test_every_code_stands_for_the_number_that_ml_dtypes_gives_it(element: Floats, dtype: type) -> None:
    expected = reference_values(dtype)
    codes = torch.arange(len(expected)).float()
    np.testing.assert_array_equal(element.levels_(codes.clone(), None).numpy(), expected)
    finite = np.isfinite(expected)
    found = element.codes_(torch.from_numpy(expected[finite]), None)
    np.testing.assert_array_equal(found.numpy(), codes.numpy()[finite])


@pytest.mark.parametrize(("element", "dtype"), NUMBERS, ids=["e2m1", "e4m3"])
def test_numbers_midpoints_and_their_neighbours_are_rounded_as_ml_dtypes_rounds_them(
    element: Floats, dtype: type
) -> None:
    x = neighbours(element)
    assert len(x) > 4 * 2 ** (element.bits - 1) - 10
    torch.testing.assert_close(element.nearest_(x.clone(), None), reference(x, element, dtype), rtol=0, atol=0)
    codes = element.codes_(x.clone(), None)
    torch.testing.assert_close(element.levels_(codes, None), reference(x, element, dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("element", "dtype"), NUMBERS, ids=["e2m1", "e4m3"])
@given(values=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=50))
def test_any_number_is_rounded_as_ml_dtypes_rounds_it(element: Floats, dtype: type, values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    found = element.nearest_(x.clone(), None)
    torch.testing.assert_close(found, reference(x, element, dtype), rtol=0, atol=0)
    residual = element.residual_(x.clone(), None, torch.empty_like(x))
    torch.testing.assert_close(residual, x - found, rtol=0, atol=0)


@pytest.mark.parametrize("element", [E2M1, E4M3], ids=["e2m1", "e4m3"])
def test_saturation_nan_and_signed_zero(element: Floats) -> None:
    big = torch.tensor([element.largest * 1.01, 1e30, -1e30, torch.nan])
    expected = torch.tensor([element.largest, element.largest, -element.largest, torch.nan])
    torch.testing.assert_close(element.nearest_(big.clone(), None), expected, rtol=0, atol=0, equal_nan=True)
    zeros = element.codes_(torch.tensor([0.0, -0.0]), None)
    assert zeros.tolist() == [0.0, 2.0 ** (element.bits - 1)]


def test_powers_of_two_are_those_of_e8m0() -> None:
    """Rounding down, storing and loading against ml_dtypes.float8_e8m0fnu, every exponent."""
    exponents = np.arange(1, 255, dtype=np.uint8)
    powers = torch.from_numpy(exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    torch.testing.assert_close(E8M0_SCALE.load(torch.from_numpy(exponents)), powers, rtol=0, atol=0)
    assert torch.equal(E8M0_SCALE.store(powers), torch.from_numpy(exponents))
    between = powers[:-1] * 1.75
    torch.testing.assert_close(E8M0_SCALE.round(between), powers[:-1], rtol=0, atol=0)
    assert E8M0_SCALE.round(torch.tensor([1e-45])).item() == 2.0**-126


def test_scales_in_e4m3_and_float16_survive_a_file() -> None:
    x = torch.linspace(1e-4, 500, 1001)
    for kind, largest in ((E4M3_SCALE, 448.0), (FLOAT16_SCALE, 65504.0)):
        rounded = kind.round(x)
        assert float(rounded.min()) > 0
        assert float(rounded.max()) <= largest
        torch.testing.assert_close(kind.load(kind.store(rounded)), rounded, rtol=0, atol=0)
    expected = x.clamp(2.0**-9, 448).numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(E4M3_SCALE.round(x).numpy(), expected)
    assert FLOAT32_SCALE.round(x) is x


def test_scales_do_not_hide_nan() -> None:
    broken = torch.tensor([torch.nan, torch.inf, 1.0])
    for kind in (E4M3_SCALE, E8M0_SCALE, FLOAT16_SCALE):
        assert torch.isfinite(kind.round(broken)).tolist() == [False, False, True]


@pytest.mark.parametrize(("bits", "scheme"), [(1, "symmetric"), (9, "symmetric"), (4, "affine")])
def test_integers_that_do_not_exist(bits: int, scheme: str) -> None:
    with pytest.raises(QuantizationError, match="use"):
        Integers(bits, scheme)  # type: ignore[arg-type]
