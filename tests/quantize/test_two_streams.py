"""Rounders that compare the quantized stream with the full-precision one, in whole passes over small models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from models.checkpoints import SIZES, save_random
from quantizers import activation_quantizer, rounder, weight_quantizer
from recipes import folded
from torch import Tensor, nn

from sq.baselines.flatquant import FlatQuant
from sq.baselines.quarot import QuaRot
from sq.formats.labels import format_of
from sq.formats.qtensor import QTensor
from sq.formats.weight import WeightQuantizer
from sq.methods.yardsticks import RoundToNearest
from sq.models.stream import DecoderStream
from sq.nn.linear import QuantizedLinear
from sq.quantize.method import Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.rounders.gptaq import Gptaq
from sq.quantize.rounders.rounder import RoundingStatistics, WeightRounder

ONLINE: dict[str, Any] = {"placement": "online", "order": ("urt",)}
IDS = torch.randint(0, SIZES["vocab_size"], (6, 20), generator=torch.Generator().manual_seed(0))


def pipeline_of(
    folder: Path,
    method: Method,
    weights: WeightRounder | None,
    *,
    activations: int = 4,
    propagate: Any = "quantized_weights",
    **options: Any,
) -> Pipeline:
    recipe = Recipe(weights, activation_quantizer(activations), propagate=propagate)
    pipeline = Pipeline(DecoderStream(folder, dtype=torch.float32), method, recipe, IDS, batch=4, **options)
    pipeline.prepare()
    return pipeline


def linears(layers: Sequence[nn.Module]) -> dict[str, QuantizedLinear]:
    return {
        f"{index}.{name}": module
        for index, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if isinstance(module, QuantizedLinear)
    }


def agreement(one: Sequence[nn.Module], other: Sequence[nn.Module]) -> float:
    """Share of weights that are equal to float rounding."""
    pairs = [(a.weight, linears(other)[name].weight) for name, a in linears(one).items()]
    return float(torch.cat([torch.isclose(a, b, rtol=1e-3, atol=1e-6).flatten() for a, b in pairs]).float().mean())


def weight_format(name: str) -> WeightQuantizer:
    if name == "groups":
        made: WeightQuantizer = weight_quantizer(4, "asymmetric", 4, clip=1.0)
        return made
    found = format_of("4", "midrise") if name == "midrise" else format_of(name)
    assert found is not None
    return WeightQuantizer(found)


@pytest.mark.parametrize("weights", ["midrise", "groups"])
@pytest.mark.parametrize(
    "method",
    [
        folded(**ONLINE),
        QuaRot(residual="orthogonal", head="orthogonal", cross_head="orthogonal", down="orthogonal"),
    ],
    ids=lambda method: method.name,
)
@torch.no_grad()
def test_without_their_correction_they_are_gptq_in_every_layer(method: Method, weights: str, tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    quantizer = weight_format(weights)
    expected = list(pipeline_of(tmp_path, method, rounder("gptq", quantizer)).layers())
    for name, option in (("gptaq", {"alpha": 0.0}), ("qronos", {"shrinkage": 0.0})):
        found = list(pipeline_of(tmp_path, method, rounder(name, quantizer, **option)).layers())
        assert agreement(found, expected) == 1
        corrected = list(pipeline_of(tmp_path, method, rounder(name, quantizer)).layers())
        assert agreement(corrected, expected) < 0.97


@dataclass(frozen=True)
class Watched(Gptaq):
    """Keeps the statistics that it was given."""

    seen: ClassVar[dict[str, RoundingStatistics]] = {}

    def round(self, weights: Sequence[Tensor], statistics: RoundingStatistics) -> list[QTensor]:
        self.seen[statistics.name] = statistics
        return super().round(weights, statistics)


def inputs(model: nn.Module, name: str) -> Tensor:
    """What a linear of layer 1 is called with."""
    kept: list[Tensor] = []
    linear = model.get_submodule(f"model.layers.1.{name}")
    handle = linear.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    model(IDS)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("method", [RoundToNearest(), folded(**ONLINE, balance=False)], ids=lambda method: method.name)
@pytest.mark.parametrize("quantized", [False, True])
@torch.no_grad()
def test_the_mismatch_is_that_of_two_whole_models(method: Method, quantized: bool, tmp_path: Path) -> None:
    """x' at a site of layer 1 is what transformers' own model has there, behind the site's transform; x what the model
    has whose linears before it are rounded and whose activations are not."""
    model = save_random(tmp_path, "llama")
    weights = Watched(weight_quantizer(3), quantized_activations=quantized)
    pipeline = pipeline_of(tmp_path, method, weights)
    layers = list(pipeline.layers())
    rounded = pipeline.stream.assemble(copy.deepcopy(layers), pipeline.embeddings_and_head)
    for module in rounded.modules():
        if hasattr(module, "quantizer"):
            module.quantizer = None
    for norm in ("input_layernorm", "post_attention_layernorm") if method.fold_norms else ():
        for layer in model.model.layers:
            gain, readers = layer.get_submodule(norm).weight, layer.mlp if norm.startswith("post") else layer.self_attn
            for name in ("gate_proj", "up_proj") if norm.startswith("post") else ("q_proj", "k_proj", "v_proj"):
                readers.get_submodule(name).weight.mul_(gain)
            gain.fill_(1)
    for site, name in (("qkv", "self_attn.q_proj"), ("down", "mlp.down_proj")):
        transform = linears(layers)[f"1.{name}"].inputs.transform
        x, full = (
            seen if transform is None else transform(seen) for seen in (inputs(rounded, name), inputs(model, name))
        )
        x = (activation_quantizer(4)(x) if quantized else x).flatten(0, 1).double()
        full = full.flatten(0, 1).double()
        found = Watched.seen[f"layer 1, {site}"]
        assert found.hessian is not None
        assert found.mismatch is not None
        for moment, expected in ((found.hessian, x.T @ x), (found.mismatch, (full - x).T @ x)):
            expected = 2 / len(x) * expected
            # A token on the border of two levels may fall to either side.
            bound = (2e-2 if quantized else 1e-4) * float(expected.abs().max())
            torch.testing.assert_close(moment.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["gptaq", "qronos"])
@torch.no_grad()
def test_not_sequential_reads_the_layer_before_anything_is_rounded(name: str, tmp_path: Path) -> None:
    """On full-precision inputs the two streams are then one: GPTQ's codes."""
    save_random(tmp_path, "qwen2")
    made = {}
    for one in ("gptq", name):
        weights = rounder(one, weight_quantizer(4), sequential=False)
        made[one] = list(pipeline_of(tmp_path, RoundToNearest(), weights, propagate="full_precision").layers())
    assert agreement(made["gptq"], made[name]) > 0.99
    weights = rounder(name, weight_quantizer(4), sequential=True)
    walked = list(pipeline_of(tmp_path, RoundToNearest(), weights, propagate="full_precision").layers())
    assert agreement(walked, made[name]) < 0.99


@pytest.mark.parametrize("propagate", ["quantized_weights", "quantized"])
@torch.no_grad()
def test_a_resumed_pass_goes_on_with_both_streams(propagate: str, tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    weights = rounder("gptaq", weight_quantizer(4), alpha=1.0)
    whole = list(pipeline_of(tmp_path, folded(**ONLINE), weights, propagate=propagate).layers())
    kept = copy.deepcopy(whole[0])
    again = pipeline_of(
        tmp_path, folded(**ONLINE), weights, propagate=propagate, saved=lambda i: None if i else (kept, None)
    )
    assert agreement(list(again.layers()), whole) > 0.99


@torch.no_grad()
def test_a_method_that_trains_on_its_input_keeps_its_targets(tmp_path: Path) -> None:
    """Whether a rounder reads the second stream is nothing to the method: its transforms stay the same."""
    save_random(tmp_path, "llama")
    found = []
    for name, option in (("gptq", {}), ("gptaq", {"alpha": 0.0})):
        method = FlatQuant(name="flatquant", epochs=1)
        found.append(list(pipeline_of(tmp_path, method, rounder(name, weight_quantizer(4), **option)).layers()))
    assert agreement(*found) == 1


@torch.no_grad()
def test_quantized_activations_change_the_hessian_and_16_bits_do_not(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    for activations, same in ((16, True), (4, False)):
        made = [
            list(
                pipeline_of(
                    tmp_path,
                    RoundToNearest(),
                    rounder("gptq", weight_quantizer(4), quantized_activations=quantized),
                    activations=activations,
                ).layers()
            )
            for quantized in (False, True)
        ]
        assert (agreement(*made) == 1) == same


@torch.no_grad()
def test_the_record_of_a_site_has_the_shrinkage(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    pipeline = pipeline_of(tmp_path, RoundToNearest(), rounder("qronos", weight_quantizer(3)))
    list(pipeline.layers())
    found = {(site["layer"], site["site"]): site["shrinkage"] for site in pipeline.record.sites}
    assert len(found) == 4 * SIZES["num_hidden_layers"]
    assert found[0, "qkv"] == 0, "the first site reads the embeddings: nothing was lost there"
    assert all(0 <= float(value) <= 1 for value in found.values())
