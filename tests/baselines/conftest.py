"""Layers as a method sees them, made up: chosen sizes, statistics of given tokens, random weights.

Fixtures that are functions: a module beside the tests could not be imported as `baselines`, the package is called so.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sq.models.families import SITES, ModelDimensions
from sq.quantize.method import LayerView, SiteStatistics


def _dimensions_of(**sizes: int) -> ModelDimensions:
    """A small Llama's sizes, changed as asked."""
    small = {"hidden": 16, "intermediate": 24, "heads": 4, "kv_heads": 2, "head_dim": 4, "layers": 2}
    return ModelDimensions(**{**small, **sizes})


def _statistics_of(tokens: Tensor) -> SiteStatistics:
    """What calibration would say of these tokens (T, n), all of them kept."""
    return SiteStatistics(tokens, tokens.square().mean(0).sqrt(), tokens.abs().amax(0), None, len(tokens))


def _view_of(dimensions: ModelDimensions, tokens: int = 64, index: int = 0) -> LayerView:
    """Gaussian tokens and weights at every site; channel 1 of each site is ten times as loud."""
    generator = torch.Generator().manual_seed(index)
    samples, weights = {}, {}
    for site in SITES:
        n = dimensions.width(site)
        samples[site] = torch.randn(tokens, n, generator=generator)
        samples[site][:, 1] *= 10
        weights[site] = torch.randn(2 * n, n, generator=generator)
    return LayerView(index, {site: _statistics_of(x) for site, x in samples.items()}, weights, dimensions)


@pytest.fixture
def dimensions_of() -> Callable[..., ModelDimensions]:
    return _dimensions_of


@pytest.fixture
def statistics_of() -> Callable[[Tensor], SiteStatistics]:
    return _statistics_of


@pytest.fixture
def view_of() -> Callable[..., LayerView]:
    return _view_of
