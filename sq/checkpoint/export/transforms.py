"""Online transforms in compressed-tensors' words: one k x k matrix that every k neighbouring features share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sq.rotation.hadamard_orders import sylvester
from sq.rotation.shared_block import shared_block
from sq.rotation.transform import Transform

FUSED = 128  # the widest block of vLLM's fused FP4 kernels (16, 32, 64 and 128)


@dataclass
class InputTransforms:
    """What stands in front of the linears of a model, gathered layer by layer.

    Attributes:
        groups: name -> type, size of the matrix, and linears by layer.
    """

    groups: dict[str, tuple[str, int, dict[int, list[str]]]] = field(default_factory=dict)
    _first: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def add(self, layer: int, site: str, linears: Sequence[str], transform: Transform | None) -> dict[str, Tensor]:
        """Take in one site of a layer; return what its linears store, by name in the layer.

        A Sylvester Hadamard is known by its type, though vLLM's fused FP4 kernels read a small one from the file;
        another matrix M is always stored. What is stored is sqrt(k) M, since readers divide by sqrt(k).

        Raises:
            QuantizationError: a transform that is no shared block, with the nearest recipe that has one.
        """
        block = None if transform is None else shared_block(transform, f"layer {layer}, {site}")
        if block is None:
            return {}
        k = block.size
        if block.matrix is None:
            name, kind, stored = f"hadamard_{k}", "hadamard", sylvester(k) if k <= FUSED else None
        else:
            same = torch.equal(self._first.setdefault((site, k), block.matrix), block.matrix)
            name, kind = site if same else f"{site}_{layer}", "random-hadamard"
            stored = block.matrix * k**0.5
        self._note(name, kind, k, layer, linears)
        if stored is None:
            return {}
        stored = stored.to("cpu", torch.float32)
        return {f"{linear}.{name}_input.weight": stored.clone().contiguous() for linear in linears}

    def config(self, layers: int) -> dict[str, Any]:
        """The fields of compressed-tensors' TransformConfig; no groups where nothing is online."""
        groups = {}
        for name, (kind, k, places) in self.groups.items():
            targets = _targets(places, layers)
            groups[name] = {
                "type": kind,
                "head_dim": k,
                "apply": [
                    {"targets": targets, "location": "input"},
                    {"targets": targets, "location": "weight_input", "inverse": True},
                ],
            }
        return {"config_groups": groups} if groups else {}

    def _note(self, name: str, kind: str, k: int, layer: int, linears: Sequence[str]) -> None:
        _, _, places = self.groups.setdefault(name, (kind, k, {}))
        places.setdefault(layer, []).extend(linears)


def _targets(places: Mapping[int, Sequence[str]], layers: int) -> list[str]:
    """Patterns of linears: without the layer's number where all layers have the same."""
    first = next(iter(places.values()))
    if len(places) == layers and all(names == first for names in places.values()):
        return [f"re:.*{re.escape(name)}$" for name in first]
    return [f"re:.*layers[.]{layer}[.]{re.escape(name)}$" for layer, names in places.items() for name in names]
