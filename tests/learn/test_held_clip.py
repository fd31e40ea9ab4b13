"""Held clips: the weight quantizer itself where a search is due, its factors on a moving range in between."""

from __future__ import annotations

import pytest
import torch
from quantizers import weight_quantizer
from torch import Tensor

from sq.formats.elements import Scheme
from sq.learn.held_clip import HeldClip


def weight(seed: int = 0) -> Tensor:
    return torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "midrise"])
def test_searching_at_every_step_is_the_quantizer(scheme: Scheme, group: int | None) -> None:
    quantizer = weight_quantizer(4, scheme, group)
    held = HeldClip(quantizer, interval=1)
    for step in range(3):
        w = weight(step)
        torch.testing.assert_close(held("a", w, step), quantizer(w), rtol=1e-5, atol=1e-6)


def test_factors_are_held_between_searches_and_searched_again_when_due() -> None:
    quantizer = weight_quantizer(3)
    held = HeldClip(quantizer, interval=4)
    held("a", weight(0), 0)
    factors = held.factors["a"].clone()
    w = weight(1)
    rounded = held("a", w, 3)
    assert torch.equal(held.factors["a"], factors)
    scale = factors * w.abs().amax(1, keepdim=True) / 3  # symmetric, 3 bits: codes -4..3
    torch.testing.assert_close(rounded, (w / scale).round().clamp(-4, 3) * scale)
    held("a", w, 4)
    assert not torch.equal(held.factors["a"], factors)
    torch.testing.assert_close(held("a", w, 5), quantizer(w), rtol=1e-5, atol=1e-6)


def test_a_name_that_was_never_seen_is_searched_at_once_and_restored_factors_are_used() -> None:
    quantizer = weight_quantizer(4)
    first = HeldClip(quantizer, interval=10)
    torch.testing.assert_close(first("a", weight(), 7), quantizer(weight()), rtol=1e-5, atol=1e-6)
    second = HeldClip(quantizer, interval=10)
    second.factors.update(first.factors)
    assert torch.equal(first("a", weight(1), 8), second("a", weight(1), 8))


def test_one_search_a_step_even_when_a_layer_is_run_twice() -> None:
    held = HeldClip(weight_quantizer(4), interval=1)
    once = held("a", weight(), 0)
    factors = held.factors["a"]
    assert torch.equal(held("a", weight(), 0), once)
    assert held.factors["a"] is factors


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("clip", ["search", 0.9])
def test_gradient_passes_unchanged(bits: int, clip: float | str) -> None:
    w, upstream = weight().requires_grad_(), weight(5)
    quantizer = weight_quantizer(bits, clip=clip)  # type: ignore[arg-type]
    (HeldClip(quantizer, 2)("a", w, 0) * upstream).sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, upstream)
