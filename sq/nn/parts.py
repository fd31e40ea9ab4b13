"""Exchange of a decoder layer's modules."""

from __future__ import annotations

from torch import nn


def replace_linear(layer: nn.Module, name: str, linear: nn.Module) -> None:
    """Put a module in the place of the linear at a path."""
    owner, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(owner), attribute, linear)
