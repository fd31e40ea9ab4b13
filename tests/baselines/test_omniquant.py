"""OmniQuant: where it starts by hand, exactness in every family, and that what is trained is what is installed."""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import FAMILIES, save_random
from models.test_invariance import exact_norms  # noqa: F401
from quantizers import activation_quantizer, rounder, weight_quantizer
from torch import Tensor

from sq.baselines import omniquant
from sq.baselines.omniquant import KEYS, LearnedLayer, OmniQuant, initial_scales
from sq.errors import QuantizationError, TrainingError
from sq.kernels.schemes import Scheme
from sq.models.families import SITES, ModelDimensions
from sq.models.stream import DecoderStream
from sq.nn.attention import AttentionInput
from sq.quantize.collect import StackedWeights, collect
from sq.quantize.method import LayerPlan, LayerView, SiteStatistics
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.training_block import TrainingBlock
from sq.quantize.training_log import TrainingLog
from sq.rotation import Diagonal


def recipe_of(
    scheme: Scheme = "symmetric", *, weights: int = 4, activations: int = 4, inside: bool = False, **options: Any
) -> Recipe:
    """All at 4 bits; `inside` rounds queries, keys and values too."""
    rounding = rounder("rtn", weight_quantizer(weights, scheme, **options))
    head = activation_quantizer(4, "asymmetric") if inside else None
    return Recipe(rounding, activation_quantizer(activations, scheme), head, head, head)


def layer_of(folder: Path, recipe: Recipe, dtype: torch.dtype = torch.float32, tokens: int = 9) -> LayerView:
    """Layer 1 of a checkpoint on random hidden states with a loud channel; the rounded stream is a little off."""
    stream = DecoderStream(folder, dtype=dtype)
    layer, generator = stream.layer(1), torch.Generator().manual_seed(5)
    reference = [torch.randn(2, tokens, stream.dimensions.hidden, generator=generator, dtype=dtype) for _ in range(2)]
    for batch in reference:
        batch[..., 4] *= 20
    inputs = [batch + 0.05 * torch.randn(batch.shape, generator=generator, dtype=dtype) for batch in reference]

    def run(call: Callable[..., Any], hidden: Tensor) -> Tensor:
        return stream.forward(1, call, hidden)

    with torch.no_grad():
        statistics, _ = collect(stream.family, layer, lambda batch: run(layer, batch), inputs, index=1, sites=SITES)
    log = TrainingLog(None, "omniquant")
    block = TrainingBlock(1, layer, run, stream.family, stream.dimensions, recipe, inputs, reference, log)
    return LayerView(1, statistics, StackedWeights(stream.family, layer), stream.dimensions, block)


def random_scales(learned: LearnedLayer, seed: int = 0) -> None:
    """Scales between 0.3 and 3 of either sign, and logits around their start."""
    generator = torch.Generator().manual_seed(seed)
    for s in learned.scales.values():
        signs = torch.randint(0, 2, s.shape, generator=generator) * 2 - 1
        s.data.copy_(signs * 10 ** (torch.rand(s.shape, generator=generator) - 0.5))
    for found in learned.ranges.values():
        for logit in found.parameters():
            logit.data.copy_(4 * torch.rand(logit.shape, generator=generator))


def learned_of(view: LayerView, *, let: bool = True, lwc: bool = True) -> LearnedLayer:
    assert view.block is not None
    return LearnedLayer(view.block, initial_scales(view, 0.5) if let else {}, lwc=lwc)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_scales_start_at_the_formula_from_q_up_and_the_group_of_o(
    alpha: float, dimensions_of: Callable[..., ModelDimensions], statistics_of: Callable[[Tensor], SiteStatistics]
) -> None:
    """By hand: two query heads of one feature share a KV head, hidden 2, intermediate 1; a dead channel keeps 1."""
    dimensions = dimensions_of(hidden=2, intermediate=1, heads=2, kv_heads=1, head_dim=1)
    tokens = {"qkv": [[9.0, 1.0], [-4.0, 2.0]], "o": [[3.0, -5.0]], "gate_up": [[6.0, 0.0]], "down": [[1.0]]}
    weights = {
        "qkv": [[1.0, -3.0], [-2.0, 2.0], [50.0, 50.0], [50.0, 50.0]],  # q has two rows, k and v one each
        "o": [[0.5, -7.0], [1.0, 2.0]],
        "gate_up": [[80.0, 80.0], [-4.0, 4.0]],
        "down": [[1.0], [1.0]],
    }
    view = LayerView(
        0,
        {site: statistics_of(torch.tensor(x)) for site, x in tokens.items()},
        {site: torch.tensor(w) for site, w in weights.items()},
        dimensions,
    )
    scales = initial_scales(view, alpha)
    expected = {
        "qkv": [9**alpha / 2 ** (1 - alpha), 2**alpha / 3 ** (1 - alpha)],
        "o": [5**alpha / 7 ** (1 - alpha)],
        "gate_up": [6**alpha / 4 ** (1 - alpha), 1.0],
    }
    assert {site: s.tolist() for site, s in scales.items()} == {
        site: pytest.approx(values) for site, values in expected.items()
    }
    for site, transform in OmniQuant(alpha=alpha).layer_transforms(view).items():
        assert transform.online is None
        assert isinstance(transform.folded, Diagonal)
        assert transform.folded.get_buffer("t").tolist() == pytest.approx([1 / value for value in expected[site]])
    assert OmniQuant(let=False).layer_transforms(view) == {}


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("family", FAMILIES)
def test_any_scales_leave_the_layer_unchanged(family: str, tmp_path: Path) -> None:
    """Bound 1e-10 of the largest output, in float64 (RoPE's angles, in float32, are the same for both)."""
    save_random(tmp_path, family)
    view = layer_of(tmp_path, recipe_of(inside=True), torch.float64)
    learned = learned_of(view)
    random_scales(learned)
    block, dimensions = learned.block, view.dimensions
    assert learned.scales[KEYS].shape == (1 if family == "qwen3" else dimensions.kv_heads, dimensions.head_dim // 2)
    assert learned.scales["o"].shape == (dimensions.kv_heads * dimensions.head_dim,)
    with torch.no_grad():
        out = block.outputs(block.inputs[0])
        changed = block.outputs(block.inputs[0], learned.transformed())
    assert float((changed - out).abs().max() / out.abs().max()) < 1e-10


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "midrise"])
def test_lwc_starts_as_plain_clipping_with_sigmoid_of_4(scheme: Scheme, tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    learned = learned_of(layer_of(tmp_path, recipe_of(scheme)), let=False)
    plain = weight_quantizer(4, scheme, clip=1 / (1 + exp(-4.0)))
    for name, weight in learned.rounded().items():
        torch.testing.assert_close(weight, plain(learned.block.weight(name.removesuffix(".weight"))))


def quantizers_of(block: TrainingBlock) -> Any:
    recipe = block.recipe
    inside = AttentionInput(None, recipe.queries, recipe.keys, recipe.values)
    return block.quantized(dict.fromkeys(SITES, recipe.activations), inside)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("scheme", "options"), [("symmetric", {}), ("asymmetric", {}), ("asymmetric", {"group_size": 4})], ids=str
)
def test_what_is_trained_is_what_the_pipeline_installs(
    family: str, scheme: Scheme, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer's training ends with outputs that the next layer is given as its rounded stream, to 1e-6 of the peak.

    In float64, so that no value sits on the other side of a rounding boundary.
    """
    save_random(tmp_path, family)
    trained: list[list[Tensor]] = []
    given: list[list[Tensor]] = []
    plan = LearnedLayer.plan

    def spy(self: LearnedLayer) -> LayerPlan:
        random_scales(self, seed=self.block.index)  # further than a few steps would come
        given.append(list(self.block.inputs))
        with torch.no_grad(), quantizers_of(self.block):
            trained.append([self.block.outputs(batch, self.rounded()) for batch in self.block.inputs])
        return plan(self)

    monkeypatch.setattr(LearnedLayer, "plan", spy)
    stream = DecoderStream(tmp_path, dtype=torch.float64)
    ids = torch.randint(0, 97, (4, 11), generator=torch.Generator().manual_seed(2))
    pipeline = Pipeline(stream, OmniQuant(epochs=1), recipe_of(scheme, inside=True, **options), ids, batch=2)
    pipeline.prepare()
    for _ in pipeline.layers():
        pass
    for outputs, inputs in zip(trained[:-1], given[1:], strict=True):
        for out, entered in zip(outputs, inputs, strict=True):
            assert float((out - entered).abs().max() / out.abs().max()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("learned", [{}, {"let": False}, {"lwc": False}], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_training_lowers_the_error_of_the_rounded_layer(family: str, learned: dict[str, bool], tmp_path: Path) -> None:
    """Of the layer as installed, on the windows trained on, at rates for 32 steps; the log tells the same start."""
    save_random(tmp_path, family)
    method = OmniQuant(epochs=8, let_lr=0.02, lwc_lr=0.2, **learned)  # type: ignore[arg-type]
    view = layer_of(tmp_path, recipe_of(inside=True), tokens=100)
    block = view.block
    assert block is not None
    losses = []

    def error(layer: LearnedLayer) -> float:
        with torch.no_grad(), quantizers_of(block):
            pairs = zip(block.inputs, block.targets(), strict=True)
            return sum(float((block.outputs(x, layer.rounded()) - y).square().mean()) for x, y in pairs) / 2

    def spy(self: LearnedLayer) -> LayerPlan:
        losses.append(error(self))
        return plan(self)

    start = error(learned_of(view, **learned))
    plan = LearnedLayer.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omniquant.LearnedLayer, "plan", spy)
        method.plan(view)
    assert losses[0] < 0.97 * start
    records = block.log.records
    assert records[0]["loss"] == pytest.approx(start, rel=1e-4)
    assert records[-1]["loss"] < start
    assert [record["epoch"] for record in records] == list(range(9))


def test_a_run_can_be_repeated_bit_for_bit(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")

    def plan() -> LayerPlan:
        return OmniQuant(epochs=2, batch=3).plan(layer_of(tmp_path, recipe_of(inside=True)))

    first, again = plan(), plan()
    for site, transform in first.sites.items():
        folded, other = transform.folded, again.sites[site].folded
        assert folded is not None
        assert other is not None
        assert torch.equal(folded.get_buffer("t"), other.get_buffer("t"))
    assert first.query_key_scale is not None
    assert again.query_key_scale is not None
    assert torch.equal(first.query_key_scale, again.query_key_scale)
    for name, (low, high) in first.weight_ranges.items():
        assert torch.equal(low, again.weight_ranges[name][0])
        assert torch.equal(high, again.weight_ranges[name][1])


def test_aug_loss_adds_the_error_to_the_full_precision_layer_on_the_rounded_stream(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    view = layer_of(tmp_path, recipe_of())
    block = view.block
    assert block is not None
    with torch.no_grad():
        exact = [block.outputs(batch) for batch in block.inputs]
        with quantizers_of(block):
            rounded = [block.outputs(batch, learned_of(view).rounded()) for batch in block.inputs]
    errors = [
        sum(float((out - target).square().mean()) for out, target in zip(rounded, targets, strict=True)) / 2
        for targets in (block.targets(), exact)
    ]
    for aug_loss, expected in ((False, errors[0]), (True, sum(errors))):
        block.log.records.clear()
        OmniQuant(epochs=1, batch=2, aug_loss=aug_loss).plan(view)
        assert block.log.records[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert min(errors) > 0.1 * max(errors)


def test_no_epoch_keeps_the_start(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    view = layer_of(tmp_path, recipe_of(inside=True))
    plan = OmniQuant(epochs=0).plan(view)
    for site, s in initial_scales(view, 0.5).items():
        folded = plan.sites[site].folded
        assert folded is not None
        torch.testing.assert_close(folded.get_buffer("t"), 1 / s)
    assert plan.query_key_scale is not None
    assert bool((plan.query_key_scale == 1).all())
    assert len(plan.weight_ranges) == 7


def test_small_scales_are_kept_away_from_zero_without_touching_gradients(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    learned = learned_of(layer_of(tmp_path, recipe_of()))
    s = learned.scales["qkv"]
    s.data[:4] = torch.tensor([0.004, -0.004, 0.0, -3.0])
    learned.truncate_scales()
    assert s[:4].tolist() == pytest.approx([0.01, -0.01, 0.01, -3.0])
    learned.transformed()["input_layernorm.weight"].sum().backward()
    assert s.grad is not None
    gain = learned.block.weight("input_layernorm")
    torch.testing.assert_close(s.grad, -gain / s.detach().square())


def test_what_is_learned_follows_what_is_rounded(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    without = learned_of(layer_of(tmp_path, recipe_of()))
    assert KEYS not in without.scales
    assert without.plan().query_key_scale is None
    view = layer_of(tmp_path, recipe_of(weights=16))
    plan = OmniQuant(epochs=1).plan(view)
    assert plan.weight_ranges == {}
    assert set(plan.sites) == {"qkv", "o", "gate_up"}
    with pytest.raises(QuantizationError, match=r"16-bit weights have no ranges to learn; set method\.let=true"):
        OmniQuant(let=False).plan(view)
    with pytest.raises(QuantizationError, match="layer 1 came without a block"):
        OmniQuant().plan(LayerView(1, view.statistics, view.weights, view.dimensions))


@pytest.mark.parametrize("setting", ["let_lr", "lwc_lr"])
def test_divergence_ends_with_layer_step_and_rates(setting: str, tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    view = layer_of(tmp_path, recipe_of(inside=True))
    method = OmniQuant(epochs=3, **{setting: 1e30})
    if setting == "lwc_lr":
        block = view.block
        assert block is not None
        block.inputs[1][0, 0, 0] = torch.nan  # sigmoids have no way to diverge
    with pytest.raises(
        TrainingError, match=rf"omniquant diverged: .* step \d+ of layer 1 with .*method\.{setting}=1e\+30"
    ):
        method.plan(view)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"alpha": 1.5}, r"alpha=1\.5 \(0 to 1\)"),
        ({"epochs": -1, "batch": 0}, r"epochs=-1 \(at least 0\), batch=0 \(at least 1\)"),
        ({"let_lr": 0.0}, r"let_lr=0\.0 \(above 0\)"),
        ({"lwc_lr": float("nan")}, "lwc_lr=nan"),
        ({"let": False, "lwc": False}, r"let=False \(true where lwc is false\)"),
    ],
)
def test_options_out_of_range_are_all_told(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OmniQuant(**arguments)
