"""The grids of engines, full_range and mxfp4_up, against compressed-tensors' own arithmetic and closed formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.catalog import MXFP4, MXFP4_UP
from sq.formats.elements import FULL_RANGE, FullRange, Integers
from sq.formats.format import integer
from sq.formats.weight import WeightQuantizer


def tokens(n: int = 96) -> Tensor:
    """Tokens of many sizes, one of zeros, and one whose largest entry is negative, a tie of the grid."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 17, n, generator=generator) * torch.logspace(-4, 3, 17)[:, None]
    x[0, 0] = 0
    x[1, 1, 0] = -x[1, 1].abs().max() * 1.5
    return x


def theirs(x: Tensor, **arguments: object) -> Tensor:
    """x rounded by compressed-tensors, with scales that it makes of x."""
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="pip install 'singlequant[export]'")
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    args = quantization.QuantizationArgs(dynamic=True, symmetric=True, **arguments)
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Module())
    found: Tensor = fake_quantize(x, scale, zero, args)
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [None, 32])
def test_full_range_is_what_compressed_tensors_computes(bits: int, group: int | None) -> None:
    who = {"strategy": "token"} if group is None else {"strategy": "group", "group_size": group}
    ours = ActivationQuantizer(integer(bits, FULL_RANGE, group))(tokens())
    torch.testing.assert_close(ours, theirs(tokens(), num_bits=bits, type="int", **who), rtol=0, atol=0)


def test_mxfp4_up_is_what_compressed_tensors_computes() -> None:
    who = {"strategy": "group", "group_size": 32, "scale_dtype": torch.uint8}
    ours, other = (ActivationQuantizer(format)(tokens()) for format in (MXFP4_UP, MXFP4))
    expected = theirs(tokens(), num_bits=4, type="float", **who)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert not torch.equal(other, expected), "the standard's scales differ, or the second format would be for nothing"


@pytest.mark.parametrize(("peak", "scale"), [(6.0, 1.0), (6.99, 1.0), (7.0, 2.0), (13.99, 2.0), (14.0, 4.0)])
def test_a_power_of_two_is_taken_up_from_1_75(peak: float, scale: float) -> None:
    """max|x| / 4, rounded to a power of two: 7 / 4 = 1.75 is the first that goes up."""
    found = ActivationQuantizer(MXFP4_UP).encode(torch.full((1, 32), peak)).scale
    assert float(found) == scale


def test_the_lowest_code_is_reached_and_the_highest_is_cut() -> None:
    """max|x| / 7.5 is the scale: -7.5 goes to the even code -8, 7.5 to 8 and is cut to 7."""
    coded = ActivationQuantizer(integer(4, FULL_RANGE)).encode(torch.tensor([[-15.0, 15.0, 1.0, 14.0]]))
    assert coded.scale.item() == 2.0
    assert coded.codes.tolist() == [[-8, 7, 0, 7]]


def test_weights_take_it_too_and_it_has_a_name_of_its_own() -> None:
    w = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    found = WeightQuantizer(integer(4, FULL_RANGE), clip=1.0).quantize(w)
    torch.testing.assert_close(found.scale, w.abs().amax(1, keepdim=True) / 7.5)
    assert integer(4) != integer(4, FULL_RANGE)
    assert Integers(4) != FullRange(4)
    assert (integer(4, FULL_RANGE).scheme, integer(4, FULL_RANGE).grid) == (None, "full_range")
    with pytest.raises(QuantizationError, match="integers of 9 bits"):
        integer(9, FULL_RANGE)
