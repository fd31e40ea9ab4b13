"""FlatQuant: what is trained is what is installed, its start by formula, and that training does what it should."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import FAMILIES, SIZES, save_random
from models.test_invariance import exact_norms, transformed_logits  # noqa: F401
from quantizers import activation_quantizer, rounder, weight_quantizer
from torch import Tensor

from sq.baselines.flatquant import FlatLayer, FlatQuant, factor_pair, initial_scale
from sq.errors import QuantizationError, TrainingError
from sq.formats.activation import ActivationQuantizer
from sq.models.families import SITES, ModelDimensions
from sq.models.stream import DecoderStream
from sq.quantize.method import LayerPlan, LayerView
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.training_log import TrainingLog
from sq.rotation import Kronecker

FOUR, CACHE = activation_quantizer(4), activation_quantizer(4, "asymmetric", group_size=12)


def recipe_of(bits: int = 4, activations: ActivationQuantizer | None = FOUR, **inside: Any) -> Recipe:
    return Recipe(rounder("rtn", weight_quantizer(bits)), activations, **inside, propagate="full_precision")


W4A4, W4A4KV4 = recipe_of(), recipe_of(keys=CACHE, values=CACHE)


@dataclass(frozen=True)
class Recording(FlatQuant):
    """Keeps what it plans, and what the layer that it trained puts out for the first calibration batch."""

    plans: list[LayerPlan] = field(default_factory=list)
    views: list[LayerView] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def plan(self, layer: LayerView) -> LayerPlan:
        flat = FlatLayer(self, layer)
        flat.fit()
        self.views.append(layer)
        self.plans.append(flat.plan())
        self.outputs.append(flat.outputs(flat.block.inputs[0]))
        return self.plans[-1]


@dataclass
class Quantized:
    """A run of the pipeline: the layers' outputs for the first calibration batch, as installed."""

    method: Recording
    log: TrainingLog
    installed: list[Tensor]


def quantize(folder: Path, recipe: Recipe, dtype: torch.dtype = torch.float32, **options: Any) -> Quantized:
    stream = DecoderStream(folder, dtype=dtype)
    ids = torch.randint(0, SIZES["vocab_size"], (6, 15), generator=torch.Generator().manual_seed(2))
    method, log = Recording(**{"epochs": 2, "steps": 3, **options}), TrainingLog(None, "flatquant")
    pipeline = Pipeline(stream, method, recipe, ids, batch=4, log=log)
    pipeline.prepare()
    installed = []
    for index, layer in enumerate(pipeline.layers()):
        block = method.views[index].block
        assert block is not None
        installed.append(stream.forward(index, layer, block.inputs[0]))
    return Quantized(method, log, installed)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    save_random(tmp_path, "llama", num_hidden_layers=2)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_what_is_installed(family: str, tmp_path: Path) -> None:
    """Float64 layers, so that no value sits between two codes by rounding alone; the quantizers work in float32."""
    save_random(tmp_path, family, num_hidden_layers=2)
    group = 10 if family in ("llama_bias", "qwen2") else 12
    cache = activation_quantizer(4, "asymmetric", group_size=group)
    run = quantize(tmp_path, recipe_of(keys=cache, values=cache, queries=cache), torch.float64)
    for trained, installed in zip(run.method.outputs, run.installed, strict=True):
        torch.testing.assert_close(trained, installed, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        recipe_of(4, None),
        recipe_of(16, FOUR),
        recipe_of(4, activation_quantizer(4, "midrise", clip="search")),
        Recipe(
            rounder("rtn", weight_quantizer(3, "asymmetric", group_size=6)),
            activation_quantizer(4, "asymmetric", group_size=12),
        ),
    ],
    ids=["w4a16", "w16a4", "midrise", "groups"],
)
@pytest.mark.parametrize("learn", [True, False], ids=["clips", "no clips"])
def test_so_it_is_with_other_quantizers_and_without_learned_clips(recipe: Recipe, learn: bool, llama: Path) -> None:
    run = quantize(llama, recipe, torch.float64, weight_clip=learn, activation_clip=learn, diagonal=learn, epochs=1)
    for trained, installed, plan in zip(run.method.outputs, run.installed, run.method.plans, strict=True):
        torch.testing.assert_close(trained, installed, rtol=1e-6, atol=1e-6)
        assert bool(plan.weight_ranges) == (learn and recipe.weights is not None)
        assert bool(plan.activation_clips) == (learn and recipe.activations is not None)
        assert (plan.sites["qkv"].folded is not None) == learn


@dataclass(frozen=True)
class Unrounded(FlatQuant):
    """Trains for W4A4KV4 and hands over the transforms alone, for a pipeline that rounds nothing."""

    def plan(self, layer: LayerView) -> LayerPlan:
        block = copy(layer.block)
        assert block is not None
        block.recipe = W4A4KV4 if block.dimensions.head_dim == 12 else W4A4
        return replace(super().plan(replace(layer, block=block)), weight_ranges={}, activation_clips={})


@pytest.mark.slow
@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_unchanged_by_trained_transforms(family: str, tmp_path: Path) -> None:
    """Bound 1e-9 of the largest logit; measured 1e-12 at most."""
    save_random(tmp_path, family, tied=True)
    rotated, original = transformed_logits(tmp_path, Unrounded(epochs=2), torch.float64)
    error = float((rotated - original).abs().max() / original.abs().max())
    assert error < 1e-9, f"relative logit error {error:.2e}"


@pytest.mark.slow
def test_training_moves_everything_and_lowers_its_objective(llama: Path) -> None:
    run, start = (quantize(llama, W4A4KV4, epochs=epochs) for epochs in (8, 0))
    assert not start.log.records
    for layer in range(2):
        losses = [record["loss"] for record in run.log.records if record["layer"] == layer]
        assert len(losses) == 9
        assert losses[-1] < 0.95 * losses[0]
    for plan, initial in zip(run.method.plans, start.method.plans, strict=True):
        for (name, after), (_, before) in zip(buffers(plan), buffers(initial), strict=True):
            assert not torch.equal(after, before), name
        assert all(0.5 < factor < 1 for pair in plan.activation_clips.values() for factor in pair)


def buffers(plan: LayerPlan) -> list[tuple[str, Tensor]]:
    """Every number of a plan."""
    found = [
        (f"{site}.folded.{name}", value)
        for site, t in plan.sites.items()
        if t.folded
        for name, value in t.folded.named_buffers()
    ]
    found += [
        (f"{site}.online.{name}", value)
        for site, t in plan.sites.items()
        if t.online
        for name, value in t.online.named_buffers()
    ]
    found += [] if plan.keys is None else [(f"keys.{name}", value) for name, value in plan.keys.named_buffers()]
    found += [(name, torch.cat(pair)) for name, pair in plan.weight_ranges.items()]
    return found + [(site, torch.tensor(pair)) for site, pair in plan.activation_clips.items()]


@pytest.mark.slow
def test_a_seed_gives_the_same_bits(llama: Path) -> None:
    first, again, other = (quantize(llama, W4A4KV4, seed=seed) for seed in (1, 1, 2))
    for one, two, three in zip(first.method.plans, again.method.plans, other.method.plans, strict=True):
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(buffers(one), buffers(two), strict=True))
        assert not any(torch.equal(a, b) for (_, a), (_, b) in zip(buffers(one), buffers(three), strict=True))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_initial_scales_are_the_papers_formula(
    alpha: float, view_of: Callable[..., LayerView], dimensions_of: Callable[..., ModelDimensions]
) -> None:
    """d_j max|x_j|^alpha / max|W_j|^(1 - alpha) is one number for all channels; d < 1 makes activations quieter."""
    view = view_of(dimensions_of())
    for site in ("qkv", "gate_up", "down"):
        d, peak = initial_scale(view, site, alpha).float(), view.statistics[site].peak
        ratio = d * peak**alpha / view.weights[site].abs().amax(0) ** (1 - alpha)
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-5, atol=0)
        assert alpha == 0 or d[1] < 0.7  # channel 1 is ten times as loud


def test_training_starts_from_rotations_and_wide_clips(llama: Path) -> None:
    for plan in quantize(llama, W4A4KV4, epochs=0).method.plans:
        for transform in [*(plan.sites[site].online for site in SITES), plan.sites["o"].folded, plan.keys]:
            assert isinstance(transform, Kronecker)
            matrix, eye = transform.matrix(), torch.eye(transform.n, dtype=torch.float64)
            torch.testing.assert_close(matrix @ matrix.T, eye, rtol=0, atol=1e-5)
        assert plan.activation_clips == {site: pytest.approx((0.98201, 0.98201), abs=1e-5) for site in SITES}


def test_transforms_have_the_places_and_sizes_of_the_table(llama: Path) -> None:
    plan = quantize(llama, W4A4KV4, epochs=0).method.plans[0]
    sizes = {"qkv": (6, 10), "gate_up": (6, 10), "down": (7, 12), "o": (6, 12)}  # 60, 60, 84, 6 heads of 12
    for site, pair in sizes.items():
        online = plan.sites[site].online
        assert isinstance(online, Kronecker)
        assert (online.n1, online.n2) == pair
    across, heads, keys = plan.sites["o"].online, plan.sites["o"].folded, plan.keys
    assert across is not None
    assert heads is not None
    assert keys is not None
    assert across.macs() == 72 * 6  # the head_dim side is an identity
    assert heads.n == 24  # two KV heads
    assert keys.n == 12


@pytest.mark.parametrize(
    ("inside", "sites", "keys"),
    [
        ({"keys": CACHE, "values": CACHE}, {"o"}, True),
        ({"values": CACHE}, {"o"}, False),
        ({"queries": CACHE}, set(), True),
    ],
    ids=["keys and values", "values", "queries"],
)
def test_a_rounded_cache_alone_gets_its_own_transforms_alone(
    inside: dict[str, Any], sites: set[str], keys: bool, llama: Path
) -> None:
    run = quantize(llama, recipe_of(16, None, **inside), torch.float64)
    assert run.log.records
    for trained, installed, plan in zip(run.method.outputs, run.installed, run.method.plans, strict=True):
        assert set(plan.sites) == sites
        assert all(transform.online is None for transform in plan.sites.values())
        assert (plan.keys is not None) == keys
        torch.testing.assert_close(trained, installed, rtol=1e-6, atol=1e-6)


def test_nothing_is_trained_where_nothing_is_rounded(llama: Path) -> None:
    run = quantize(llama, recipe_of(16, None))
    assert not run.log.records
    for plan in run.method.plans:
        assert set(plan.sites) == set(SITES)
        assert plan.keys is None
        assert not plan.weight_ranges
        assert not plan.activation_clips


def test_gptq_rounds_the_clamped_weights(llama: Path) -> None:
    gptq = replace(W4A4, weights=rounder("gptq", weight_quantizer(4)))
    run = quantize(llama, gptq)
    assert run.method.plans[0].weight_ranges
    assert all(bool(torch.isfinite(out).all()) for out in run.installed)


def test_divergence_ends_in_an_error_that_names_layer_step_and_rates(llama: Path) -> None:
    said = r"flatquant diverged: the loss is nan at step [1-6] of layer 0 with method\.lr=1e\+30, method\.clip_lr=0\.05"
    with pytest.raises(TrainingError, match=said):
        quantize(llama, W4A4, lr=1e30)


def test_scales_that_underflow_are_a_divergence_too(llama: Path) -> None:
    ids = torch.randint(0, SIZES["vocab_size"], (2, 15), generator=torch.Generator().manual_seed(2))
    method = FlatQuant(epochs=1, steps=1, lr=1e4)
    pipeline = Pipeline(DecoderStream(llama, dtype=torch.float32), method, W4A4, ids)
    pipeline.prepare()
    with pytest.raises(TrainingError, match=r"diverged by step 1 of layer 0 with method\.lr=10000.*Diagonal got"):
        next(pipeline.layers())


@pytest.mark.parametrize(
    ("n", "pair"), [(7919, (1, 7919)), (1, (1, 1)), (4096, (64, 64)), (13824, (108, 128)), (62, (2, 31))]
)
def test_a_prime_size_has_one_full_factor(n: int, pair: tuple[int, int]) -> None:
    assert factor_pair(n) == pair


def test_a_view_without_a_block_is_refused(
    view_of: Callable[..., LayerView], dimensions_of: Callable[..., ModelDimensions]
) -> None:
    with pytest.raises(QuantizationError, match="layer 3 came without a block"):
        FlatQuant().plan(view_of(dimensions_of(), index=3))


@pytest.mark.parametrize(
    "wrong", [{"epochs": -1}, {"steps": 0}, {"lr": 0.0}, {"clip_lr": float("nan")}, {"alpha": 1.5}], ids=str
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"out of range: {next(iter(wrong))}="):
        FlatQuant(**wrong)
