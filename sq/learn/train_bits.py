"""Training under other bits than those of the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.format import Format
from sq.formats.labels import SIXTEEN, format_of, parse_parts
from sq.quantize.recipe import Recipe
from sq.quantize.rounders.rounder import WeightRounder

ROUNDED_ONLINE = ("activations", "queries", "keys", "values")


def recipe_at(recipe: Recipe, label: str) -> Recipe:
    """The run's recipe with other bits; parts that the label leaves out keep theirs.

    QuantizationError is raised for no label, and for a part to be rounded that the run leaves in 16 bits.
    """
    parts = parse_parts(label)
    quantizers: dict[str, Any] = {
        part: _quantizer_at(getattr(recipe, part), parts.get(part), part, label) for part in ROUNDED_ONLINE
    }
    return replace(recipe, weights=_rounder_at(recipe.weights, parts["weights"], label), **quantizers)


def describe(recipe: Recipe) -> dict[str, str]:
    """All quantizers of a recipe in words, by part."""
    parts = {"weights": recipe.weight_quantizer, **{part: getattr(recipe, part) for part in ROUNDED_ONLINE}}
    if recipe.activations is not None:
        parts |= {f"activations of {site}": recipe.activations_at(site) for site in recipe.site_groups}
    return {part: "16 bits" if found is None else str(found) for part, found in parts.items()}


def _rounder_at(found: WeightRounder | None, part: str, label: str) -> WeightRounder | None:
    if part == SIXTEEN:
        return None
    if found is None:
        raise _nothing_to_round("weights", label)
    return replace(found, quantizer=replace(found.quantizer, format=_format_at(found.quantizer.format, part)))


def _quantizer_at(
    found: ActivationQuantizer | None, part: str | None, name: str, label: str
) -> ActivationQuantizer | None:
    if part is None:
        return found
    if part == SIXTEEN:
        return None
    if found is None:
        raise _nothing_to_round(name, label)
    format = _format_at(found.format, part)
    return found if format == found.format else ActivationQuantizer(format, found.clip, found.candidates)


def _format_at(found: Format, part: str) -> Format:
    """The format of a part of a label; integers keep the scheme and the groups of the run's own."""
    scheme = found.grid if part.isdigit() else None
    wanted = format_of(part, scheme or "symmetric", found.group if scheme else None)
    assert wanted is not None
    return wanted


def _nothing_to_round(part: str, label: str) -> QuantizationError:
    return QuantizationError(
        f"training at {label} rounds {part}, for which this run has no quantizer (it leaves them in 16 bits); train at "
        f"its own bits, or leave {part} in 16 bits there too"
    )
