"""Rounding with gradients: numbers of the plain grid, derivatives against finite differences of what they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantizers import row_format
from torch import Tensor

from sq.formats.elements import SCHEMES, Scheme
from sq.formats.format import Format, integer
from sq.formats.grid import grid_from_range
from sq.kernels.grid import code_range
from sq.learn.rounding import round_on

ROWS = 6


def round_between(x: Tensor, low: Tensor, high: Tensor, format: Format) -> Tensor:
    """x rounded on the grid that spans [low, high]."""
    return round_on(x, grid_from_range(low, high, format))


def case(scheme: Scheme, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose ranges leave some entries outside on both ends; the symmetric grids follow either end."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 40, generator=generator)
    low = 0.7 * x.amin(1, keepdim=True)
    high = (0.5 + 0.1 * torch.arange(ROWS)[:, None]) * x.amax(1, keepdim=True)
    return x, low, high


@pytest.mark.parametrize("include_zero", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers_are_those_of_the_grid(scheme: Scheme, bits: int, include_zero: bool) -> None:
    x, low, high = case(scheme)
    for shifted in (x, x + 5, torch.zeros_like(x)):
        ends = (low, high) if shifted is x else (shifted.amin(1, keepdim=True), shifted.amax(1, keepdim=True))
        expected = grid_from_range(*ends, row_format(bits, scheme, include_zero)).fake(shifted.clone())
        assert torch.equal(round_between(shifted, *ends, row_format(bits, scheme, include_zero)), expected)


def held(x: Tensor, low: Tensor, high: Tensor, bits: int, scheme: Scheme) -> Any:
    """The function that straight-through rounding differentiates, in float64: rounding as an offset that is held.

    What is clamped is held too, since codes rounded to the very end sit on the corner of the clamp.
    """
    first, last = code_range(bits, scheme)

    def scale_of(low: Tensor, high: Tensor) -> Tensor:
        if scheme == "asymmetric":
            return (high.clamp_min(0) - low.clamp_max(0)) / (2**bits - 1)
        return torch.maximum(-low, high) * (1 / (2 ** (bits - 1) - 1) if scheme == "symmetric" else 2 / (2**bits - 1))

    scale = scale_of(low, high)
    zero = torch.round(-low.clamp_max(0) / scale) if scheme == "asymmetric" else torch.zeros_like(scale)
    steps = x / scale
    rounded = torch.floor(steps) if scheme == "midrise" else torch.round(steps)
    offset, ends = rounded - steps, (rounded + zero).clamp(first, last)
    clamped = ends != rounded + zero

    def value(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        scale = scale_of(low, high)
        codes = torch.where(clamped, ends, x / scale + offset + zero) - zero
        return (codes + (0.5 if scheme == "midrise" else 0)) * scale

    return value


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_are_finite_differences_with_the_rounding_held(scheme: Scheme, bits: int) -> None:
    x, low, high = case(scheme)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, low, high)]
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (round_between(*leaves, integer(bits, scheme)) * weight).sum().backward()  # type: ignore[arg-type]
    exact = [tensor.double() for tensor in (x, low, high)]
    function = held(*exact, bits, scheme)  # type: ignore[arg-type]
    for which, leaf in enumerate(leaves):
        expected = torch.zeros_like(exact[which])
        for index in range(leaf.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [tensor.clone() for tensor in exact]
                moved[which].view(-1)[index] += step
                ends.append(float((function(*moved) * weight).sum()))
            expected.view(-1)[index] = (ends[0] - ends[1]) / 2e-6
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_clamped_entries_have_true_derivatives(scheme: Scheme) -> None:
    """Between two jumps of the rounding y = (end of the codes) * scale(range): no straight-through about it."""
    x, low, high = case(scheme)
    with torch.no_grad():
        above = x > 1.3 * torch.maximum(high, -low)  # beyond the range whichever end the grid follows
    x = torch.where(above, x, 0.0)
    x[:, 0] = 4 * torch.maximum(high, -low)[:, 0]
    moved = high.clone().requires_grad_()
    round_between(x, low, moved, integer(4, scheme))[:, 0].sum().backward()
    step = 1e-3
    ends = [round_between(x, low, high + sign * step, integer(4, scheme))[:, 0] for sign in (1, -1)]
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad[:, 0], (ends[0] - ends[1]) / (2 * step), rtol=2e-3, atol=2e-3)


def test_by_hand() -> None:
    """Symmetric, 4 bits, range 7.5: s = 7.5 / 7, 2.3 -> 2 s, 20 -> 7 s. dy/ds = q - x / s inside, q = 7 beyond."""
    x, low, high = torch.tensor([[2.3, 20.0]]), torch.tensor([[-7.0]]), torch.tensor([[7.5]])
    leaves = [tensor.requires_grad_() for tensor in (x, low, high)]
    y = round_between(*leaves, integer(4, "symmetric"))  # type: ignore[arg-type]
    scale = 7.5 / 7
    torch.testing.assert_close(y, torch.tensor([[2 * scale, 7 * scale]]))
    gradients = torch.autograd.grad(y[0, 0], leaves, retain_graph=True)
    torch.testing.assert_close(gradients[0], torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(gradients[2], torch.tensor([[(2 - 2.3 / scale) / 7]]))
    assert float(gradients[1]) == 0
    gradients = torch.autograd.grad(y[0, 1], leaves)
    torch.testing.assert_close(gradients[0], torch.zeros(1, 2))
    torch.testing.assert_close(gradients[2], torch.tensor([[1.0]]))
