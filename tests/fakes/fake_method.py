"""A method whose arguments have many types; nothing is ever quantized with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sq.formats.format import Format
from sq.methods.yardsticks import RoundToNearest


@dataclass(frozen=True)
class Typed(RoundToNearest):
    """Takes no format with groups."""

    name: str = "typed"
    steps: int = 1
    order: Sequence[str] = ("art",)
    inner: Mapping[str, float] = field(default_factory=dict)

    def obstacle(self, weights: Format | None, activations: Format | None) -> str | None:
        return "it has no groups" if weights is not None and weights.group is not None else None
