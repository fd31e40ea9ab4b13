"""Learned clips: plain clipping where they start, and gradients that find the better clip."""

from __future__ import annotations

from math import exp
from typing import Any

import pytest
import torch
from quantizers import activation_quantizer, weight_quantizer
from torch import Tensor

from sq.formats.elements import SCHEMES, Scheme
from sq.learn.clips import LearnedClip, LearnedRange, fake_weight

START = 1 / (1 + exp(-4.0))


def heavy(rows: int = 12, columns: int = 384, seed: int = 0) -> Tensor:
    """Gaussian rows with an entry of five standard deviations at each end: the best 4-bit range leaves them out."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[:, 0], x[:, 1] = 5.0, -4.5
    return x


@pytest.mark.parametrize("group_size", [None, 32])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_fake_weight_is_the_quantizer_without_a_clip_search(scheme: Scheme, bits: int, group_size: int | None) -> None:
    w = heavy()
    quantizer = weight_quantizer(bits, scheme, group_size)
    plain = weight_quantizer(bits, scheme, group_size, clip=1.0)
    assert torch.equal(fake_weight(w, quantizer), plain(w))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_a_range_starts_as_plain_clipping(scheme: Scheme) -> None:
    """Clamped to its range and rounded, w is what a clip factor of sigmoid(4) gives.

    Symmetric rows have equal ends, so that both are clipped alike, and code -8, which clamped weights never get, is out
    of reach of -7 / 0.982.
    """
    w = heavy()
    if scheme == "symmetric":
        w[:, 1] = -5.0
    low, high = LearnedRange(len(w))(w)
    torch.testing.assert_close(low, START * w.amin(1, keepdim=True))
    torch.testing.assert_close(high, START * w.amax(1, keepdim=True))
    clamped = fake_weight(w.clamp(low, high), weight_quantizer(4, scheme))
    torch.testing.assert_close(clamped, weight_quantizer(4, scheme, clip=START)(w), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group_size", [None, 32])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_activation_clip_starts_as_plain_clipping_and_tells_its_factors(
    scheme: Scheme, group_size: int | None
) -> None:
    x = heavy().view(3, 4, 384)
    clip = LearnedClip()
    quantizer = activation_quantizer(4, scheme, "search", group_size)
    assert clip.factors() == pytest.approx((START, START))
    expected = quantizer.with_clip(clip.factors())(x)
    torch.testing.assert_close(clip(x, quantizer), expected, rtol=1e-6, atol=1e-6)
    assert clip(x.bfloat16(), quantizer).dtype == torch.bfloat16


def falls(parameters: Any, loss: Any, steps: int = 80) -> tuple[float, float]:
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    start = float(loss().detach())
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    return start, float(loss().detach())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_learned_ranges_reach_the_error_of_a_clip_search(scheme: Scheme) -> None:
    """The search of the quantizer itself, over 80 factors for each row by the squared error, is the yardstick."""
    w = heavy()
    learned, quantizer = LearnedRange(len(w)), weight_quantizer(4, scheme, norm=2)

    def loss() -> Tensor:
        return (fake_weight(w.clamp(*learned(w)), quantizer) - w).square().mean()

    start, end = falls(learned.parameters(), loss)
    searched = float((quantizer(w) - w).square().mean())
    assert end < 0.9 * start
    assert end < 1.1 * searched


@pytest.mark.parametrize("scheme", [*SCHEMES, "full_range"])
def test_a_learned_activation_clip_reaches_the_best_common_factor(scheme: Scheme) -> None:
    x = heavy(rows=64)
    clip, quantizer = LearnedClip(), activation_quantizer(4, scheme)

    def error(factor: float) -> float:
        return float((quantizer.with_clip(factor)(x) - x).square().mean())

    _, end = falls(clip.parameters(), lambda: (clip(x, quantizer) - x).square().mean())
    assert end < 1.02 * min(error(0.02 * step) for step in range(10, 51))


def test_gradients_reach_the_weight_as_well() -> None:
    w = heavy().requires_grad_()
    learned = LearnedRange(len(w))
    low, high = learned(w)
    fake_weight(w.clamp(low, high), weight_quantizer(4)).sum().backward()
    assert w.grad is not None
    inside = (w > low) & (w < high)
    at_ends = torch.zeros_like(inside)
    at_ends[:, :2] = True
    torch.testing.assert_close(w.grad[inside & ~at_ends], torch.ones(int((inside & ~at_ends).sum())))
    assert bool((w.grad[:, 0] != 1).all())  # the largest entry moves the grid of all the others
