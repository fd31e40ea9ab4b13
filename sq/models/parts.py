"""Typed access to a decoder layer's parts by path."""

from __future__ import annotations

from torch import Tensor, nn


def weight_of(layer: nn.Module, path: str) -> Tensor:
    """The weight of the linear or norm at `path`, itself and not a copy."""
    weight = layer.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight.data


def bias_of(layer: nn.Module, path: str) -> Tensor | None:
    """The bias of the linear at `path`, or None where it has none."""
    bias = layer.get_submodule(path).bias
    assert bias is None or isinstance(bias, Tensor)
    return None if bias is None else bias.data
