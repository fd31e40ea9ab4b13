"""Lean gradients of rounding: those of the plain version, of amin and amax, and numbers of the quantizers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learn.autograd_rounding import fake_between
from quantizers import activation_quantizer, row_format
from torch import Tensor

from sq.formats.elements import SCHEMES, Scheme
from sq.formats.format import integer
from sq.formats.grid import grid_from_range
from sq.learn.rounding import RangeGradient, differentiable, round_on, row_extremes


def tokens(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x[..., 3] *= 9
    return x


def gradients(y: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
    return torch.autograd.grad((y * weight).sum(), leaves)


@pytest.mark.parametrize("include_zero", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers_and_gradients_are_those_of_the_plain_version(scheme: Scheme, bits: int, include_zero: bool) -> None:
    x, low, high = tokens(20, 32), -0.6 * torch.rand(20, 1) - 0.1, 2 * torch.rand(20, 1) + 0.1
    x, low, high = (tensor.requires_grad_() for tensor in (x, low, high))
    plain = fake_between(x, low, high, row_format(bits, scheme, include_zero))
    lean = round_on(x, grid_from_range(low, high, row_format(bits, scheme, include_zero)))
    assert torch.equal(lean, plain)
    for found, expected in zip(gradients(lean, x, low, high), gradients(plain, x, low, high), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_lowest_code_is_kept_to() -> None:
    x = torch.tensor([[-7.9, -7.4, 7.9]], requires_grad=True)
    grid = grid_from_range(torch.tensor([[-7.0]]), torch.tensor([[7.0]]), integer(4))
    assert round_on(x, grid).tolist() == [[-8, -7, 7]]
    kept = round_on(x, grid, lowest=-7)
    assert kept.tolist() == [[-7, -7, 7]]
    assert torch.autograd.grad(kept.sum(), x)[0].tolist() == [[0, 1, 0]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), min_size=1, max_size=4))
def test_extremes_share_their_gradient_among_equals_as_amin_and_amax_do(rows: list[list[int]]) -> None:
    x = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    weights = (3.0, 5.0)

    def total(low: Tensor, high: Tensor) -> Tensor:
        return weights[0] * low.sum() + weights[1] * high.sum()

    found = torch.autograd.grad(total(*row_extremes(x)), x)[0]
    expected = torch.autograd.grad(total(x.amin(1, keepdim=True), x.amax(1, keepdim=True)), x)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("clip", [1.0, 0.8, (0.7, 0.9), "search"], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_activations_get_the_quantizers_numbers(
    scheme: Scheme, clip: float | str | tuple[float, float], group_size: int | None
) -> None:
    quantizer = activation_quantizer(4, scheme, clip, group_size)  # type: ignore[arg-type]
    x = tokens(2, 5, 32)
    found = RangeGradient(quantizer)(x.requires_grad_())
    torch.testing.assert_close(found, quantizer(x.detach()), rtol=1e-6, atol=1e-6)


def test_gradient_of_activations_sees_the_outlier_that_costs_the_others() -> None:
    """Its straight-through part is the identity; the rest, sum of g (q - x / s) ds/dx, goes to the peak alone."""
    x = tokens(1, 32)
    x[0, 3] = 20.0
    leaf, g = x.clone().requires_grad_(), torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    y = RangeGradient(activation_quantizer(4))(leaf)
    found = torch.autograd.grad(y, leaf, g)[0]
    expected = g.clone()
    scale = 20.0 / 7
    expected[0, 3] += float((g * (y.detach() - x) / scale).sum()) / 7
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_needs_no_gradient_goes_to_the_quantizer() -> None:
    x = tokens(4, 32)
    assert not RangeGradient(activation_quantizer(4))(x).requires_grad
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        assert not RangeGradient(activation_quantizer(4))(leaf).requires_grad
    assert differentiable(None) is None
    assert isinstance(differentiable(activation_quantizer(4)), RangeGradient)
