"""What a pass records of its layers: right numbers, at the price of one calibration window a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import SIZES, save_random
from quantizers import activation_quantizer, rounder, weight_quantizer
from recipes import folded
from torch import Tensor

from sq.methods.yardsticks import RoundToNearest
from sq.models.stream import DecoderStream
from sq.quantize.pass_record import PassRecord, relative_error
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe

LAYERS, WINDOWS, LENGTH = 3, 40, 10


def pipeline_of(folder: Path, method: Any, bits: int = 4, **recipe: Any) -> tuple[Pipeline, Tensor]:
    stream = DecoderStream(folder, dtype=torch.float32)
    propagate = recipe.pop("propagate", "quantized_weights")
    weights = rounder(recipe.pop("name", "rtn"), weight_quantizer(bits), **recipe)
    ids = torch.randint(0, SIZES["vocab_size"], (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(0))
    made = Recipe(weights, activation_quantizer(bits), propagate=propagate)
    return Pipeline(stream, method, made, ids, batch=4), ids


@torch.no_grad()
def test_errors_by_layer_are_those_of_transformers_own_layers(tmp_path: Path) -> None:
    """The full-precision side comes from hooks on transformers' model; the quantized layers run on its inputs."""
    model = save_random(tmp_path, "llama")
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    pipeline, ids = pipeline_of(tmp_path, RoundToNearest(), propagate="full_precision")
    model(ids[:1])
    pipeline.prepare()
    quantized = list(pipeline.layers())
    assert [entry["layer"] for entry in pipeline.record.layers] == list(range(LAYERS))
    for index, (source, full) in enumerate(seen):
        found = pipeline.stream.forward(index, quantized[index], source).double()
        expected = float((found - full).norm() ** 2 / full.double().norm() ** 2)
        assert 1e-5 < expected < 1
        assert pipeline.record.layers[index]["error"] == pytest.approx(expected, rel=0.02)  # a code may tip


@pytest.mark.slow
@pytest.mark.parametrize("propagate", ["full_precision", "quantized_weights", "quantized"])
def test_a_rotated_layer_in_16_bits_has_no_error_and_one_in_4_bits_has(tmp_path: Path, propagate: str) -> None:
    save_random(tmp_path, "qwen3")
    errors = {}
    for bits in (16, 4):
        method = folded(order=("orthogonal", "urt"))
        pipeline, _ = pipeline_of(tmp_path, method, bits, propagate=propagate)
        pipeline.prepare()
        list(pipeline.layers())
        errors[bits] = [float(entry["error"]) for entry in pipeline.record.layers]
    assert max(errors[16]) < 1e-9
    assert min(errors[4]) > 1e-4


@pytest.mark.parametrize(
    ("propagate", "forwards", "windows"), [("full_precision", 1, 1), ("quantized_weights", 2, 1), ("quantized", 2, 0)]
)
def test_recording_runs_one_window_a_layer_and_no_more(
    tmp_path: Path, propagate: str, forwards: int, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 128 calibration windows that is under 1% of the capture; here all tokens through all layers are counted."""
    save_random(tmp_path, "llama")
    pipeline, _ = pipeline_of(tmp_path, RoundToNearest(), propagate=propagate)
    tokens, forward = [], pipeline.stream.forward

    def counted(index: int, layer: Any, hidden: Tensor) -> Tensor:
        tokens.append(hidden.shape[0] * hidden.shape[1])
        return forward(index, layer, hidden)

    monkeypatch.setattr(pipeline.stream, "forward", counted)
    pipeline.prepare()
    list(pipeline.layers())
    assert sum(tokens) == LAYERS * LENGTH * (forwards * WINDOWS + windows)
    assert windows / (forwards * WINDOWS) < 0.05
    assert pipeline.record.recording_seconds > 0


def test_recording_changes_no_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers are the same to the bit as those of a pass whose recording was cut out."""
    save_random(tmp_path, "llama")
    states = []
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr(PassRecord, "describe_layer", lambda *_: None)
        method = folded(order=("orthogonal", "urt"))
        pipeline, _ = pipeline_of(tmp_path, method, name="gptq")
        pipeline.prepare()
        states.append([layer.state_dict() for layer in pipeline.layers()])
        assert bool(pipeline.record.layers) == recorded
    for with_it, without in zip(*states, strict=True):
        assert with_it.keys() == without.keys()
        assert all(torch.equal(with_it[name], without[name]) for name in with_it)


def test_relative_error_of_known_tensors() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 5.0]), expected) == pytest.approx(1 / 25)
    assert relative_error(expected, expected) == 0.0
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
