"""What a pass costs: forwards of each layer over the calibration windows, and factors of Hessians a site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import SIZES, save_random
from quantizers import activation_quantizer, rounder, weight_quantizer
from torch import Tensor

from sq.methods.singlequant import SingleQuant
from sq.methods.yardsticks import RoundToNearest
from sq.models.families import SITES
from sq.models.stream import DecoderStream
from sq.quantize.method import Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.rounders import gptq

LAYERS, WINDOWS, BATCH = SIZES["num_hidden_layers"], 6, 4
# Hadamard matrices exist for factors of all of these sizes, as the default stages of SingleQuant ask for.
HADAMARD = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def counted(
    folder: Path, method: Method, weights: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> dict[str, Counter[int]]:
    """Windows that went through each layer, those of the record of a layer's error ("recording") counted apart."""
    save_random(folder, "llama", **HADAMARD)
    stream = DecoderStream(folder, dtype=torch.float32)
    ids = torch.randint(0, SIZES["vocab_size"], (WINDOWS, 11), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(rounder(weights, weight_quantizer(4), **options), activation_quantizer(4))
    pipeline = Pipeline(stream, method, recipe, ids, batch=BATCH)
    windows: dict[str, Counter[int]] = {"quantizing": Counter(), "recording": Counter()}
    now, forward, recording = ["quantizing"], stream.forward, pipeline.record.recording

    def watched(index: int, layer: Any, hidden: Tensor) -> Tensor:
        windows[now[-1]][index] += hidden.shape[0]
        return forward(index, layer, hidden)

    @contextmanager
    def told(*arguments: Any) -> Iterator[None]:
        now.append("recording")
        with recording(*arguments):
            yield
        now.pop()

    monkeypatch.setattr(stream, "forward", watched)
    monkeypatch.setattr(pipeline.record, "recording", told)
    pipeline.prepare()
    for _ in pipeline.layers():
        pass
    return windows


@pytest.mark.parametrize(
    ("method", "weights", "options", "forwards"),
    [
        # residual sample, statistics, and one walk through the sites that ends in the rounded layer's outputs
        (SingleQuant(placement="folded"), "gptq", {}, 3),
        (SingleQuant(placement="folded"), "gptq", {"sequential": False}, 3),
        (SingleQuant(placement="folded"), "rtn", {}, 3),
        (SingleQuant(placement="online"), "gptq", {}, 2),  # no residual sample
        (SingleQuant(placement="online"), "rtn", {}, 2),
        (RoundToNearest(), "gptq", {}, 2),
        (RoundToNearest(), "rtn", {}, 2),
        (RoundToNearest(), "gptq", {"quantized_activations": True}, 2),
        # moments behind the quantizer have a forward of their own, and the outputs of the rounded layer another
        (RoundToNearest(), "gptq", {"quantized_activations": True, "sequential": False}, 3),
        # the full-precision stream has one more, which takes it to the next layer as well
        (RoundToNearest(), "gptaq", {}, 3),
        (RoundToNearest(), "qronos", {}, 3),
        (RoundToNearest(), "gptaq", {"sequential": False}, 4),
        (SingleQuant(placement="folded"), "qronos", {"quantized_activations": True}, 4),
    ],
    ids=lambda value: getattr(value, "placement", getattr(value, "name", None)),
)
def test_each_layer_sees_the_windows_so_often_and_one_more_for_the_record(
    method: Method,
    weights: str,
    options: dict[str, Any],
    forwards: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = counted(tmp_path, method, weights, monkeypatch, **options)
    assert found["quantizing"] == dict.fromkeys(range(LAYERS), forwards * WINDOWS)
    assert found["recording"] == dict.fromkeys(range(LAYERS), 1)


@pytest.mark.parametrize(("weights", "streams"), [("gptq", 1), ("gptaq", 2)])
def test_without_room_for_all_windows_each_site_has_a_forward_of_its_own(
    weights: str, streams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sq.quantize.round._SHARE", 0.0)
    found = counted(tmp_path, RoundToNearest(), weights, monkeypatch)
    # statistics, four sites of each stream, and the outputs of the rounded layer
    assert found["quantizing"] == {index: (2 + streams * len(SITES)) * WINDOWS for index in range(LAYERS)}


@pytest.mark.parametrize("sequential", [True, False])
def test_the_linears_of_a_site_share_one_factor(
    sequential: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    factor = gptq.inverse_factor

    def watched(*arguments: Any, name: str, **options: Any) -> Tensor:
        names.append(name)
        return factor(*arguments, name=name, **options)

    monkeypatch.setattr(gptq, "inverse_factor", watched)
    counted(tmp_path, RoundToNearest(), "gptq", monkeypatch, sequential=sequential)
    assert sorted(names) == sorted(f"layer {index}, {site}" for index in range(LAYERS) for site in SITES)
