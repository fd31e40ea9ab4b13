"""SmoothQuant: s by hand, and what it promises of peaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sq.baselines.smoothquant import SmoothQuant
from sq.models.families import SITES, ModelDimensions
from sq.quantize.method import LayerView, SiteStatistics
from sq.rotation import Diagonal


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_s_is_the_papers_formula_up_to_a_common_factor(
    alpha: float, dimensions_of: Callable[..., ModelDimensions], statistics_of: Callable[[Tensor], SiteStatistics]
) -> None:
    """Two channels by hand: peaks 9 and 4, weight peaks 1 and 16."""
    tokens, weights = torch.tensor([[9.0, 1.0], [-2.0, -4.0]]), torch.tensor([[-1.0, 3.0], [0.5, 16.0]])
    view = LayerView(0, dict.fromkeys(SITES, statistics_of(tokens)), dict.fromkeys(SITES, weights), dimensions_of())
    folded = SmoothQuant(alpha=alpha).layer_transforms(view)["gate_up"].folded
    assert isinstance(folded, Diagonal)
    s = 1 / folded.get_buffer("t")
    assert float(s[0] / s[1]) == pytest.approx((9**alpha / 1 ** (1 - alpha)) / (4**alpha / 16 ** (1 - alpha)))
    assert float(s.prod()) == pytest.approx(1.0)


def test_at_one_half_activations_and_weights_get_equal_peaks_and_o_and_down_are_untouched(
    dimensions_of: Callable[..., ModelDimensions], view_of: Callable[..., LayerView]
) -> None:
    view = view_of(dimensions_of())
    transforms = SmoothQuant(alpha=0.5).layer_transforms(view)
    assert set(transforms) == {"qkv", "gate_up"}
    for site, transform in transforms.items():
        assert transform.online is None
        x = transform.tokens(view.statistics[site].tokens, site, view.dimensions).abs().amax(0)
        w = transform.weights(view.weights[site], site, view.dimensions).abs().amax(0)
        torch.testing.assert_close(x / w, (x / w).mean().expand_as(x), rtol=1e-5, atol=0)


def test_a_dead_channel_is_left_alone(
    dimensions_of: Callable[..., ModelDimensions],
    statistics_of: Callable[[Tensor], SiteStatistics],
    view_of: Callable[..., LayerView],
) -> None:
    view = view_of(dimensions_of())
    tokens = view.statistics["qkv"].tokens
    tokens[:, 3] = 0
    dead = LayerView(0, {**view.statistics, "qkv": statistics_of(tokens)}, view.weights, view.dimensions)
    folded = SmoothQuant().layer_transforms(dead)["qkv"].folded
    assert folded is not None
    assert float(folded.get_buffer("t")[3]) == 1.0


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha=.*allowed is 0"):
        SmoothQuant(alpha=alpha)
