"""Which formats the parts of a run take, before anything is loaded: who refuses one, and groups that do not divide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sq.errors import QuantizationError
from sq.formats.elements import GridName
from sq.formats.format import Format
from sq.formats.labels import SIXTEEN, Bits, format_of
from sq.quantize.rounders.registry import rounder_class, rounder_names

if TYPE_CHECKING:
    from sq.quantize.method import Method


@dataclass(frozen=True)
class Grouping:
    """How one quantizer rounds: the scheme of integers, and the neighbouring entries that share a scale."""

    scheme: GridName
    group_size: int | None


def refusals(
    bits: Bits,
    weights: Grouping,
    activations: Grouping,
    kv_cache: Grouping,
    *,
    method: Method | None,
    rounder: str,
    widths: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> list[str]:
    """Everything that does not go together, one sentence each, with the names of both.

    Args:
        method: None where it is not known.
        rounder: its name, registered or not.
        widths: that linears read, and head_dim; as far as they are known.
    """
    problems: list[str] = []
    linears, heads = widths
    w = _format("weights", bits.weights, weights, linears, problems)
    a = _format("activations", bits.activations, activations, linears, problems)
    for part in dict.fromkeys((bits.queries, bits.keys, bits.values)):
        _format("kv_cache", part, kv_cache, heads, problems)
    if method is not None and (reason := method.obstacle(w, a)):
        names = [
            f"{part} in {'16 bits' if one is None else one.name}" for part, one in (("weights", w), ("activations", a))
        ]
        problems.append(f"method={method.name} does not take {' with '.join(names)}: {reason}")
    kind = rounder_class(rounder) if rounder in rounder_names() else None
    if w is not None and kind is not None and (reason := kind.obstacle(w)):
        problems.append(f"weights={rounder} does not take the format {w.name}: {reason}")
    return problems


def _format(where: str, part: str, grouping: Grouping, widths: Sequence[int], problems: list[str]) -> Format | None:
    """The format of one part, checked against the widths it meets; None for 16 bits and for what cannot be."""
    if part == SIXTEEN:
        return None
    try:
        found = format_of(part, grouping.scheme, grouping.group_size)
        assert found is not None
        if found.tensor and where != "weights":
            raise QuantizationError(
                f"the format {part} has one scale for a whole tensor, so that a token would depend on its batch; use "
                "one with a scale for each token or group"
            )
        if found.static and where == "kv_cache":
            raise QuantizationError(f"{part} has one second scale for a site, and attention has no sites; use nvfp4")
    except QuantizationError as error:
        problems.append(f"{where}: {error}")
        return None
    if found.group is not None and (wrong := [str(n) for n in widths if n % found.group]):
        group = (
            f"{where}.group_size={found.group}"
            if grouping.group_size
            else f"{where}: {part} in groups of {found.group}"
        )
        problems.append(f"{group} does not divide the model's {' or '.join(wrong)} features; use a divisor")
    return found
