"""CAT: the closed formula, the equality it is made for, odd sizes and bad moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sq.baselines.cat import Cat, balanced_blocks
from sq.errors import CalibrationError, QuantizationError
from sq.models.families import ModelDimensions
from sq.quantize.method import LayerView
from sq.rotation import block_balance


def moment(n: int, seed: int) -> Tensor:
    x = torch.randn(4 * n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:, 0] *= 10
    return x.T @ x / len(x)


@pytest.mark.parametrize(("n", "block"), [(12, 4), (15, 5), (7, 7), (6, 1)])
def test_both_moments_become_one(n: int, block: int) -> None:
    s_x, s_w = moment(n, 0), moment(n, 1)
    for m, start in zip(balanced_blocks(s_x, s_w, block, 0.0), range(0, n, block), strict=True):
        own = slice(start, start + block)
        left, inverse = m @ s_x[own, own] @ m / s_x.diagonal().mean(), torch.linalg.inv(m)
        right = inverse @ s_w[own, own] @ inverse / s_w.diagonal().mean()
        torch.testing.assert_close(m, m.T)
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


def test_one_channel_is_the_diagonal_balance() -> None:
    s_x, s_w = moment(5, 2), moment(5, 3)
    expected = (s_w.diagonal() / s_w.diagonal().mean() / s_x.diagonal() * s_x.diagonal().mean()).pow(0.25)
    torch.testing.assert_close(balanced_blocks(s_x, s_w, 1, 0.0).flatten(), expected)


def test_it_is_the_block_balance_up_to_a_rotation() -> None:
    s_x, s_w = moment(8, 4), moment(8, 5)
    ours = block_balance(s_x, s_w, 4, damping=0.0).get_buffer("blocks")
    theirs = balanced_blocks(s_x, s_w, 4, 0.0)
    torch.testing.assert_close(ours @ ours.mT, theirs @ theirs.mT)


def test_damping_does_not_depend_on_the_scale_of_channels() -> None:
    s_x, s_w, scale = moment(6, 6), moment(6, 7), torch.tensor([1e-3, 1, 1, 10, 1, 1e3], dtype=torch.float64)
    plain = balanced_blocks(s_x, s_w, 6, 0.05)[0]
    scaled = balanced_blocks(s_x * scale * scale[:, None], s_w / scale / scale[:, None], 6, 0.05)[0]
    # G = M M maps to diag(1 / scale) G diag(1 / scale), up to the two means
    ratio = scaled @ scaled / (plain @ plain / scale / scale[:, None])
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])), rtol=1e-6, atol=0)


def test_dead_channels_and_bad_moments() -> None:
    dead = moment(6, 8)
    dead[2], dead[:, 2] = 0, 0
    assert bool(torch.isfinite(balanced_blocks(dead, moment(6, 9), 3, 0.01)).all())
    with pytest.raises(CalibrationError, match="layer 3, qkv: a second moment is not positive definite"):
        balanced_blocks(-torch.eye(4) + 2 * torch.ones(4, 4), moment(4, 0), 4, 0.01, "layer 3, qkv")
    with pytest.raises(ValueError, match="block=0"):
        Cat(block=0)


def _with_moments(view: LayerView) -> LayerView:
    moments = {
        site: replace(found, second_moment=found.tokens.T @ found.tokens / found.count)
        for site, found in view.statistics.items()
    }
    return replace(view, statistics=moments)


def test_cost_of_a_site_is_its_block_and_the_hadamard(
    dimensions_of: Callable[..., ModelDimensions], view_of: Callable[..., LayerView]
) -> None:
    found = Cat(block=5).layer_transforms(_with_moments(view_of(dimensions_of())))
    for site, n, block, butterflies in (("qkv", 16, 4, 4), ("down", 24, 4, 12 + 1)):
        online = found[site].online
        assert online is not None
        assert found[site].folded is None
        assert online.macs() == n * (block + butterflies), "24 = 12 x 2"


def test_a_site_without_a_hadamard_is_named(
    dimensions_of: Callable[..., ModelDimensions], view_of: Callable[..., LayerView]
) -> None:
    view = _with_moments(view_of(dimensions_of(intermediate=18)))
    with pytest.raises(QuantizationError, match="layer 0, down: no Hadamard matrix of order 18 exists"):
        Cat().layer_transforms(view)
