"""Labels of bits, and a recipe under other bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from quantizers import activation_quantizer, rounder, weight_quantizer

from sq.errors import QuantizationError
from sq.formats.format import integer
from sq.formats.labels import parse_parts
from sq.learn.train_bits import describe, recipe_at
from sq.quantize.recipe import Recipe
from sq.quantize.rounders.gptq import Gptq

RECIPE = Recipe(
    rounder("gptq", weight_quantizer(4, "asymmetric", 32), damping=0.02),
    activation_quantizer(4, "midrise", "search", candidates=5),
    keys=activation_quantizer(8, "asymmetric", group_size=64),
)


@pytest.mark.parametrize(
    ("label", "bits"),
    [
        ("w16a4", {"weights": "16", "activations": "4"}),
        ("W4A4", {"weights": "4", "activations": "4"}),
        ("w4a4kv8", {"weights": "4", "activations": "4", "keys": "8", "values": "8"}),
        ("w3a6q5kv16", {"weights": "3", "activations": "6", "queries": "5", "keys": "16", "values": "16"}),
    ],
)
def test_labels(label: str, bits: dict[str, str]) -> None:
    assert parse_parts(label) == bits


@pytest.mark.parametrize("label", ["", "w4", "a4", "w4a4 ", "w4a9", "w1a4", "w4a4kv", "w4a4v4", "w4a4kv4q4"])
def test_other_labels_are_refused_with_the_form(label: str) -> None:
    with pytest.raises(ValueError, match=r"(?=.*w<format>a<format>, then q<format> and kv<format> )(?=.*2 to 8 or 16)"):
        parse_parts(label)


def test_only_bits_change_and_parts_left_out_stay() -> None:
    found = recipe_at(RECIPE, "w3a6")
    assert found.weights == Gptq(replace(RECIPE.weights.quantizer, format=integer(3, "asymmetric", 32)), damping=0.02)
    assert recipe_at(RECIPE, "w16a6").weights is None
    activations = found.activations
    assert activations is not None
    assert (activations.format.bits, activations.format.scheme, activations.clip, activations.candidates) == (
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
