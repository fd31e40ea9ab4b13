"""Fewer passes over the activations of a packed decoder layer: sites compute what stands in front of them."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from sq.models.families import Family
from sq.nn.linear import PackedLinear
from sq.nn.packed_group import group_linears
from sq.nn.site_input import DeferredNorm


class PackedMLP(nn.Module):
    """down(silu(gate(x)) up(x)), with the gating left to the site of `down`; the packed linears of `mlp` keep their
    names `gate`, `up` and `down`."""

    def __init__(self, mlp: nn.Module, gate: str, up: str, down: str) -> None:
        super().__init__()
        for name in (gate, up, down):
            self.add_module(name, mlp.get_submodule(name))
        self._names = (gate, up, down)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        gate, up, down = (self._modules[name] for name in self._names)
        assert gate is not None
        assert up is not None
        assert down is not None
        y: Tensor = down(gate(x), up(x))
        return y


def fuse(family: Family, layer: nn.Module) -> None:
    """Let the sites of a packed layer compute the norms and the gating in front of them, and join their linears.

    In place, names in state dicts stay. What is not as expected (an activation other than SiLU, a norm without a gain)
    is left as it is.
    """
    for site, names in family.linears.items():
        linears = [linear for name in names if isinstance(linear := layer.get_submodule(name), PackedLinear)]
        if len(linears) < len(names):
            continue
        if site in family.norms:
            _defer_norm(layer, family.norms[site], linears[0])
        group_linears(linears)
    owner = layer.get_submodule(family.mlp)
    (down,) = family.linears["down"]
    if isinstance(getattr(owner, "act_fn", None), (nn.SiLU, SiLUActivation)) and isinstance(
        layer.get_submodule(down), PackedLinear
    ):
        names = (*family.linears["gate_up"], down)
        setattr(layer, family.mlp, PackedMLP(owner, *(name.rpartition(".")[2] for name in names)))


def _defer_norm(layer: nn.Module, path: str, reader: PackedLinear) -> None:
    norm = layer.get_submodule(path)
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    if not isinstance(weight, nn.Parameter) or not isinstance(eps, float):
        return
    deferred = DeferredNorm(weight, eps)
    setattr(layer, path, deferred)
    reader.inputs.defer(deferred)
