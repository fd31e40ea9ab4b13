"""Published recipes: each is its method with quantizers of its own, at the bits of the run."""

from __future__ import annotations

import pytest

from sq.config.compose import compose
from sq.config.parse import options
from sq.errors import ConfigError
from sq.runs.build import build_method
from sq.runs.runid import run_id

# Weights' scheme and clip, activations' scheme and clip, as published; OmniQuant and FlatQuant learn weights' ranges.
RECIPES = {
    "smoothquant": ("symmetric", 1.0, "symmetric", 1.0),
    "quarot": ("symmetric", "search", "symmetric", 0.9),
    "duquant": ("asymmetric", 0.8, "asymmetric", 0.9),
    "omniquant": ("asymmetric", None, "asymmetric", 1.0),
    "flatquant": ("symmetric", None, "symmetric", 1.0),
    "spinquant": ("symmetric", "search", "asymmetric", 1.0),
}
ARGUMENTS = {
    "duquant": {"keys": "hadamard", "alpha": 0.6, "block": 128},
    "omniquant": {"let_lr": 1e-3, "alpha": 0.75, "aug_loss": False},
    "spinquant": {"schedule": "cosine", "clip_interval": 1},
}


def test_every_baseline_that_publishes_quantizers_has_one() -> None:
    assert options("published") == sorted(RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_as_published(name: str) -> None:
    settings, shared = compose([f"published={name}", "weights=gptq"]), compose([f"method={name}", "weights=gptq"])
    scheme, clip, activations, factor = RECIPES[name]
    assert (settings.weights.name, settings.weights.scheme) == ("gptq", scheme)
    assert clip is None or settings.weights.clip == clip
    assert (settings.activations.name, settings.activations.scheme) == (activations, activations)
    assert settings.activations.clip == factor
    assert settings.activations.o_group == ("head" if name == "spinquant" else None)
    assert settings.bits == shared.bits
    assert settings.method.name == f"{name}_published"
    assert settings.method.target == shared.method.target
    assert settings.method.arguments == {**shared.method.arguments, **ARGUMENTS.get(name, {})}
    assert build_method(settings.method).name == settings.method.name
    assert run_id(settings) != run_id(shared)


def test_the_command_line_wins() -> None:
    settings = compose(["published=duquant", "activations=midrise", "activations.clip=0.7", "bits=w4a8"])
    assert (settings.activations.scheme, settings.activations.clip, settings.bits.label) == ("midrise", 0.7, "W4A8KV16")


def test_the_recipe_of_another_method_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"published=duquant is the recipe of duquant, .*quarot.QuaRot; leave method="
    ):
        compose(["published=duquant", "method=quarot"])
    with pytest.raises(ConfigError, match=r"published=rtn; allowed: duquant, "):
        compose(["published=rtn"])
