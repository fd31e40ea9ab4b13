"""One activation clip for each site: its choice by a plain search, with every method, in every format, and packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import SIZES, random_model
from quantizers import activation_quantizer, rounder, weight_quantizer
from recipes import folded
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from sq.baselines.duquant import DuQuant
from sq.baselines.flatquant import FlatQuant
from sq.baselines.omniquant import OmniQuant
from sq.baselines.quarot import QuaRot
from sq.baselines.smoothquant import SmoothQuant
from sq.baselines.spinquant import SpinQuant
from sq.checkpoint.packed_folder import CheckpointWriter
from sq.formats.activation import ActivationQuantizer
from sq.formats.labels import format_of
from sq.methods.yardsticks import FullPrecision, RoundToNearest
from sq.models.families import SITES
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.nn.site_input import SiteInput
from sq.quantize import pipeline as pipelines
from sq.quantize.method import LayerPlan, LayerView, Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe

FOUR_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}  # Hadamard matrices exist
METHODS: dict[str, Any] = {
    "rtn": RoundToNearest(),
    "smoothquant": SmoothQuant(),
    "quarot": QuaRot(),
    "duquant": DuQuant(block=12, rotation_steps=4),
    "omniquant": OmniQuant(epochs=1, batch=2),
    "flatquant": FlatQuant(epochs=1, activation_clip=False),
    "spinquant": SpinQuant(steps=2, batch=2, clip_interval=2),
    "singlequant": folded(order=("orthogonal", "urt")),
}
OURS = folded(order=("urt",), placement="online")


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers whose tokens have a few loud channels."""
    folder = tmp_path_factory.mktemp("heavy")
    model = random_model("llama", **FOUR_HEADS, num_hidden_layers=2)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, [3, 17]] *= 8
    model.save_pretrained(folder)
    return folder


def windows() -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (4, 20), generator=torch.Generator().manual_seed(0))


def pipeline_of(
    folder: Path, method: Method, activations: ActivationQuantizer | None, *, name: str = "rtn", **more: Any
) -> Pipeline:
    recipe = Recipe(rounder(name, weight_quantizer(4)), activations, site_clips=True)
    return Pipeline(DecoderStream(folder, dtype=torch.float32), method, recipe, windows(), batch=2, **more)


def quantized(pipeline: Pipeline) -> list[nn.Module]:
    pipeline.prepare()
    return list(pipeline.layers())


def clips_of(layer: nn.Module) -> list[Any]:
    """In the order of the layer's modules; each site once."""
    inputs = {id(one): one for one in layer.modules() if isinstance(one, SiteInput)}
    return [one.quantizer.clip for one in inputs.values()]


def plain_symmetric(x: Tensor, clip: float) -> Tensor:
    step = clip * x.abs().amax(-1, keepdim=True) / 7
    return (x / step).round().clamp(-8, 7) * step


def plain_midrise(x: Tensor, clip: float) -> Tensor:
    step = clip * x.abs().amax(-1, keepdim=True) / 7.5
    return ((x / step - 0.5).round().clamp(-8, 7) + 0.5) * step


def plain_asymmetric(x: Tensor, clip: float) -> Tensor:
    low, high = clip * x.amin(-1, keepdim=True).clamp_max(0), clip * x.amax(-1, keepdim=True).clamp_min(0)
    step = (high - low) / 15
    zero = (-low / step).round()
    return ((x / step).round().add(zero).clamp(0, 15) - zero) * step


PLAIN = {"symmetric": plain_symmetric, "midrise": plain_midrise, "asymmetric": plain_asymmetric}


@pytest.mark.parametrize("scheme", PLAIN)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_gets_the_clips_of_a_plain_search(
    name: str, scheme: Any, heavy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, of every site, with the transform as a matrix; each token's error is over its own mean square."""
    seen: list[tuple[LayerView, LayerPlan]] = []
    choose = pipelines.with_site_clips

    def watched(view: LayerView, plan: LayerPlan, quantizer: ActivationQuantizer) -> LayerPlan:
        seen.append((view, choose(view, plan, quantizer)))
        return seen[-1][1]

    monkeypatch.setattr(pipelines, "with_site_clips", watched)
    layers = quantized(pipeline_of(heavy, METHODS[name], activation_quantizer(4, scheme)))
    assert len(seen) == len(layers) == 2
    for (view, plan), layer in zip(seen, layers, strict=True):
        assert sorted(clips_of(layer)) == sorted(plan.activation_clips.values())
        for site in SITES:
            x = view.statistics[site].tokens
            x = plan.sites[site].tokens(x, site, view.dimensions).double() if site in plan.sites else x.double()
            errors = {}
            for i in range(9):
                clip = 1 - 0.4 * i / 8
                miss = (PLAIN[scheme](x, clip) - x).square().sum(-1) / x.square().sum(-1)
                errors[clip] = float(miss.mean())
            assert errors[plan.activation_clips[site]] <= min(errors.values()) * (1 + 1e-5)
    assert min(min(plan.activation_clips.values()) for _, plan in seen) < 1  # type: ignore[type-var]


def test_clips_that_a_method_learned_stay(heavy: Path) -> None:
    method = FlatQuant(epochs=1)
    pipeline = pipeline_of(heavy, method, activation_quantizer(4))
    for layer in quantized(pipeline):
        assert all(isinstance(clip, tuple) for clip in clips_of(layer))
    assert all(isinstance(site["activation_clip"], tuple) for site in pipeline.record.sites)


def test_the_record_names_the_clip_of_each_site(heavy: Path) -> None:
    pipeline = pipeline_of(heavy, OURS, activation_quantizer(4))
    layers = quantized(pipeline)
    for index, layer in enumerate(layers):
        own = [site["activation_clip"] for site in pipeline.record.sites if site["layer"] == index]
        assert sorted(own) == sorted(clips_of(layer))


@pytest.mark.parametrize("part", ["mxfp4", "nvfp4", "nvfp4_46", "mxfp8"])
def test_formats_with_groups_take_it(part: str, tmp_path: Path) -> None:
    """Groups of 16 and 32 divide these sizes; scales are powers of two or E4M3."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
    random_model("llama", **sizes, num_key_value_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    format = format_of(part, "symmetric", None)
    assert format is not None
    (layer,) = quantized(pipeline_of(tmp_path, RoundToNearest(), ActivationQuantizer(format)))
    assert all(format.element.lowest_clip <= clip <= 1 for clip in clips_of(layer))


def test_full_precision_and_16_bit_activations_have_none(heavy: Path) -> None:
    for layer in quantized(pipeline_of(heavy, FullPrecision(), activation_quantizer(4))):
        assert not clips_of(layer)
    for layer in quantized(pipeline_of(heavy, RoundToNearest(), None)):
        assert all(one.quantizer is None for one in layer.modules() if isinstance(one, SiteInput))


def test_a_clip_for_each_site_lowers_the_error_of_outputs(heavy: Path) -> None:
    errors = []
    for site_clips in (False, True):
        recipe = Recipe(None, activation_quantizer(4), site_clips=site_clips)
        pipeline = Pipeline(DecoderStream(heavy, dtype=torch.float32), OURS, recipe, windows(), batch=2)
        quantized(pipeline)
        errors.append(pipeline.record.layers[0]["error"])
    assert errors[1] < errors[0]


@pytest.mark.parametrize("scheme", PLAIN)
@torch.no_grad()
def test_packed_folder_keeps_the_clips_and_gives_the_fake_logits(scheme: Any, heavy: Path, tmp_path: Path) -> None:
    quantizer = activation_quantizer(4, scheme)
    fake = pipeline_of(heavy, OURS, quantizer, name="gptq")
    layers = quantized(fake)
    expected: PreTrainedModel = assemble(fake.stream, layers, fake.embeddings_and_head)
    packed = pipeline_of(heavy, OURS, quantizer, name="gptq", packed=True)
    writer = CheckpointWriter(tmp_path / "packed", packed.stream.config, {"method": "test"})
    for index, layer in enumerate(quantized(packed)):
        writer.write_layer(index, layer)
        again, _ = writer.read_layer(index, packed.stream.meta_layer(index))
        assert sorted(clips_of(again)) == sorted(clips_of(layers[index]))
    model = AutoModelForCausalLM.from_pretrained(writer.finish(packed.embeddings_and_head))
    found, logits = (one(windows()).logits for one in (model, expected))
    # An activation on the boundary of two codes may fall to either side: a few logits, and little.
    assert float((found - logits).square().mean() / logits.square().mean()) < 1e-3
