"""Training under other bits than those of the run."""

from __future__ import annotations

import re
from dataclasses import replace

from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.grid import MAX_BITS, MIN_BITS, UNQUANTIZED_BITS
from sq.quantize.recipe import Recipe

LABEL = re.compile(r"w(?P<weights>\d+)a(?P<activations>\d+)(?:q(?P<queries>\d+))?(?:kv(?P<cache>\d+))?")
BITS = (*range(MIN_BITS, MAX_BITS + 1), UNQUANTIZED_BITS)


def parse_bits(label: str) -> dict[str, int]:
    """Bits by part ("weights", "activations", "queries", "cache") of a label such as w16a4 or w4a4q4kv4.

    Raises:
        ValueError: another form, or bits that no quantizer has.
    """
    found = LABEL.fullmatch(label)
    bits = {} if found is None else {part: int(text) for part, text in found.groupdict().items() if text}
    if not bits or any(value not in BITS for value in bits.values()):
        raise ValueError(
            f"bits {label!r}; use w<bits>a<bits>, then q<bits> and kv<bits> if wanted (w16a4, w4a4kv4), with bits of "
            f"{', '.join(map(str, BITS))}"
        )
    return bits


def recipe_at(recipe: Recipe, label: str) -> Recipe:
    """The run's recipe with other bits; parts that the label leaves out keep theirs.

    Raises:
        QuantizationError: a part that the run leaves in 16 bits, and has no quantizer for, is to be rounded.
    """
    bits = parse_bits(label)
    cache = bits.get("cache")
    return Recipe(
        replace(recipe.weights, quantizer=replace(recipe.weights.quantizer, bits=bits["weights"])),
        _at(recipe.activations, bits["activations"], "activations", label),
        _at(recipe.queries, bits.get("queries"), "queries", label),
        _at(recipe.keys, cache, "keys", label),
        _at(recipe.values, cache, "values", label),
    )


def describe(recipe: Recipe) -> dict[str, str]:
    """All quantizers of a recipe in words, by part."""
    parts = {"activations": recipe.activations, "queries": recipe.queries, "keys": recipe.keys, "values": recipe.values}
    named = {part: "16 bits" if found is None or found.bits == 16 else str(found) for part, found in parts.items()}
    weights = recipe.weights.quantizer
    return {"weights": "16 bits" if weights.bits == 16 else str(weights), **named}


def _at(found: ActivationQuantizer | None, bits: int | None, part: str, label: str) -> ActivationQuantizer | None:
    if bits is None or (found is not None and found.bits == bits):
        return found
    if bits == 16:
        return None
    if found is None:
        raise QuantizationError(
            f"training at {label} rounds {part}, for which this run has no quantizer (it leaves them in 16 bits); "
            f"train at its own bits, or leave {part} in 16 bits there too"
        )
    return ActivationQuantizer(bits, found.scheme, found.clip, found.group_size, found.candidates)
