"""Every baseline leaves the full-precision model's logits unchanged, in every family, before any rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import EVERY_FAMILY, save_random
from models.test_invariance import exact_norms, transformed_logits  # noqa: F401
from quantizers import rounder, weight_quantizer

from sq.baselines.cat import Cat
from sq.baselines.duquant import DuQuant
from sq.baselines.flatquant import FlatQuant
from sq.baselines.mrgptq import MrGptq
from sq.baselines.omniquant import OmniQuant
from sq.baselines.quarot import PLACES, QuaRot
from sq.baselines.smoothquant import SmoothQuant
from sq.baselines.spinquant import SpinQuant
from sq.quantize.recipe import Recipe

# Hadamard matrices exist for 4 heads of 12, hidden 60 and intermediate 84; for the families' own 6 heads there is none.
FOUR_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
UNGROUPED = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12}
HAAR: dict[str, Any] = {"residual": "orthogonal", "head": "orthogonal", "down": "orthogonal", "keys": "orthogonal"}


class FourBitTraining(SpinQuant):
    """Rotations are learned for weights of 4 bits, for a pipeline that rounds nothing."""

    def trained_on(self, recipe: Recipe) -> Recipe:
        return replace(recipe, weights=rounder("rtn", weight_quantizer(4)))


METHODS: dict[str, tuple[Any, dict[str, int]]] = {
    "cat": (Cat(block=16), FOUR_HEADS),
    "mrgptq": (MrGptq(block=4), FOUR_HEADS),
    "quarot, across heads where there is a Hadamard": (
        QuaRot(cross_head="auto", head="orthogonal", keys="orthogonal"),
        {},
    ),
    "smoothquant": (SmoothQuant(), {}),
    "quarot": (QuaRot(), FOUR_HEADS),
    "quarot, no rotation across heads": (QuaRot(cross_head="none", head="orthogonal", keys="orthogonal"), {}),
    "quarot, random orthogonal": (
        QuaRot(**dict.fromkeys(PLACES, "orthogonal")),
        {},
    ),
    "spinquant": (FourBitTraining(steps=2, batch=2, clip_interval=2), FOUR_HEADS),
    "spinquant, random orthogonal": (FourBitTraining(steps=2, batch=2, clip_interval=2, **HAAR), {}),
    "omniquant": (OmniQuant(epochs=2, let_lr=0.1), {}),
    "omniquant, a KV head for each query head": (OmniQuant(epochs=1, batch=3, alpha=0.8), UNGROUPED),
    "duquant": (DuQuant(block=12, rotation_steps=8), {}),
    "duquant, a KV head for each query head": (DuQuant(block=12, rotation_steps=8, permutations=2), UNGROUPED),
    "duquant, a Hadamard of each block of keys": (DuQuant(block=12, rotation_steps=2, keys="hadamard"), {}),
    "flatquant": (FlatQuant(), {}),
    "flatquant, prime sizes": (
        FlatQuant(diagonal=False),
        {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 12, "intermediate_size": 83},
    ),
}


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize(("method", "sizes"), METHODS.values(), ids=METHODS.keys())
def test_float64_logits_are_unchanged(family: str, method: Any, sizes: dict[str, int], tmp_path: Path) -> None:
    """Bound 1e-9 of the largest logit; measured 1e-12 at most."""
    save_random(tmp_path, family, tied=True, **sizes)
    rotated, original = transformed_logits(tmp_path, method, torch.float64)
    error = float((rotated - original).abs().max() / original.abs().max())
    assert error < 1e-9, f"relative logit error {error:.2e}"
