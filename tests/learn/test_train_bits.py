"""Labels of bits, and a recipe under other bits."""

from __future__ import annotations

import pytest

from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.weight import WeightQuantizer
from sq.learn.train_bits import describe, parse_bits, recipe_at
from sq.quantize.recipe import Recipe, WeightRecipe

RECIPE = Recipe(
    WeightRecipe("gptq", WeightQuantizer(4, "asymmetric", 32)),
    ActivationQuantizer(4, "midrise", "search", candidates=5),
    keys=ActivationQuantizer(8, "asymmetric", group_size=64),
)


@pytest.mark.parametrize(
    ("label", "bits"),
    [
        ("w16a4", {"weights": 16, "activations": 4}),
        ("w4a4kv8", {"weights": 4, "activations": 4, "cache": 8}),
        ("w3a6q5kv16", {"weights": 3, "activations": 6, "queries": 5, "cache": 16}),
    ],
)
def test_labels(label: str, bits: dict[str, int]) -> None:
    assert parse_bits(label) == bits


@pytest.mark.parametrize("label", ["", "w4", "a4", "W4A4", "w4a4 ", "w4a9", "w1a4", "w4a4kv", "w4a4v4", "w4a4kv4q4"])
def test_other_labels_are_refused_with_the_form(label: str) -> None:
    with pytest.raises(ValueError, match=r"use w<bits>a<bits>, then q<bits> and kv<bits> .* 2, 3, 4, 5, 6, 7, 8, 16"):
        parse_bits(label)


def test_only_bits_change_and_parts_left_out_stay() -> None:
    found = recipe_at(RECIPE, "w16a6")
    assert (found.weights.quantizer.bits, found.weights.quantizer.group_size, found.weights.name) == (16, 32, "gptq")
    activations = found.activations
    assert activations is not None
    assert (activations.bits, activations.scheme, activations.clip, activations.candidates) == (
        6,
        "midrise",
        "search",
        5,
    )
    assert found.keys is RECIPE.keys
    assert found.values is None
    assert recipe_at(RECIPE, "w4a16").activations is None
    assert recipe_at(RECIPE, "w4a4").activations is RECIPE.activations


def test_a_part_that_the_run_has_no_quantizer_for_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"training at w4a4kv8 rounds values, .*no quantizer"):
        recipe_at(RECIPE, "w4a4kv8")


def test_description_tells_recipes_apart() -> None:
    assert describe(RECIPE) == describe(recipe_at(RECIPE, "w4a4"))
    assert describe(RECIPE) != describe(recipe_at(RECIPE, "w16a4"))
    assert describe(recipe_at(RECIPE, "w16a16"))["weights"] == "16 bits"
    assert "midrise" in describe(RECIPE)["activations"]
