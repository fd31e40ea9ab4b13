"""Rounding behind learned clips against the same through autograd, number by number and gradient by gradient."""

from __future__ import annotations

import pytest
import torch
from learn.autograd_rounding import fake_between
from quantizers import activation_quantizer, weight_quantizer
from torch import Tensor

from sq.formats.elements import SCHEMES, Scheme
from sq.formats.format import integer
from sq.learn.clips import LearnedClip, LearnedRange, clipped_weight, fake_weight


def made(rows: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gaussian rows; one without negative entries, one of zeros, one whose extreme is there twice."""
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(3), dtype=dtype)
    x[1] = x[1].abs()
    x[2] = 0
    x[3, :2] = 9
    return x.requires_grad_()


def same(one: Tensor, other: Tensor, inputs: list[Tensor]) -> None:
    weights = torch.randn(one.shape, generator=torch.Generator().manual_seed(4), dtype=one.dtype)
    assert one.dtype == other.dtype
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    expected, got = (torch.autograd.grad((y * weights).sum(), inputs) for y in (one, other))
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def by_autograd(learned: LearnedRange | LearnedClip, x: Tensor) -> tuple[Tensor, Tensor]:
    """The learned range of each row, through torch's own extremes."""
    return learned.low.sigmoid() * x.amin(-1, keepdim=True), learned.high.sigmoid() * x.amax(-1, keepdim=True)


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_clamped_and_rounded_as_by_autograd(
    scheme: Scheme, dtype: torch.dtype, group_size: int | None
) -> None:
    w, learned, quantizer = made(8, 32, dtype), LearnedRange(8), weight_quantizer(4, scheme, group_size)
    generator = torch.Generator().manual_seed(5)
    for logit in learned.parameters():
        logit.data.normal_(generator=generator)
    low, high = by_autograd(learned, w)
    same(fake_weight(w.clamp(low, high), quantizer), clipped_weight(w, learned, quantizer), [w, *learned.parameters()])


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_tokens_are_rounded_as_by_autograd(scheme: Scheme, dtype: torch.dtype, group_size: int | None) -> None:
    x, learned, quantizer = made(8, 32, dtype), LearnedClip(), activation_quantizer(4, scheme, group_size=group_size)
    learned.low.data.fill_(0.3)
    learned.high.data.fill_(1.1)
    shaped = x.view(2, 4, 32)
    rows = shaped.reshape(-1, group_size or 32).float()
    low, high = by_autograd(learned, rows)
    expected = fake_between(rows, low, high, integer(4, scheme, group_size)).view_as(shaped).to(dtype)
    same(expected, learned(shaped, quantizer), [x, *learned.parameters()])
