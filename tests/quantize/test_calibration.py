"""Calibration: how many tokens it keeps, and what it does to layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.checkpoints import save_random
from quantizers import activation_quantizer, weight_quantizer

from sq.baselines.quarot import QuaRot
from sq.baselines.smoothquant import SmoothQuant
from sq.formats.activation import ActivationQuantizer
from sq.formats.labels import format_of
from sq.methods.singlequant import SingleQuant
from sq.methods.yardsticks import RoundToNearest
from sq.models.stream import DecoderStream
from sq.quantize import calibration as module
from sq.quantize.calibration import Calibration
from sq.quantize.method import LayerView, Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.rounders.registry import rounder_class


@pytest.mark.parametrize(("sample", "least", "kept"), [(None, 8, 60), (None, 100, 100), (5, 8, 5)])
def test_samples_are_as_many_as_the_residual_stream_is_wide(
    sample: int | None, least: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_SAMPLE", least)
    save_random(tmp_path, "llama")  # hidden states of 60
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 97, (4, 64), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(stream, ids, batch=2, sample=sample, fold_norms=True)
    assert calibration.sample == kept
    hidden = calibration.embedded(stream.embeddings_and_head())
    assert [tuple(batch.shape) for batch in hidden] == [(2, 64, 60)] * 2
    found, outputs = calibration.collect(0, stream.layer(0), hidden)
    assert len(found["qkv"].tokens) <= kept < 2 * len(found["qkv"].tokens) + 2
    torch.testing.assert_close(torch.cat(outputs), torch.cat(calibration.run(0, stream.layer(0), hidden)))


@pytest.mark.parametrize(
    ("windows", "batch", "sample", "kept"),
    [
        (32, 8, 16, range(0, 32, 2)),  # 16 windows at least
        (64, 8, 16, range(0, 64, 4)),
        (64, 5, 80, range(0, 64, 3)),  # 20 windows hold twice 80 tokens
        (31, 8, 16, range(31)),
        (3, 2, 1000, range(3)),
    ],
)
def test_some_windows_are_evenly_spaced(
    windows: int, batch: int, sample: int, kept: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_random(tmp_path, "llama")
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    ids = torch.arange(windows)[:, None].expand(-1, 8)
    calibration = Calibration(stream, ids, batch=batch, sample=sample, fold_norms=True)
    hidden = [part[..., None].float() for part in ids.split(batch)]
    found = torch.cat(calibration.some(hidden))
    assert found[:, 0, 0].tolist() == [float(k) for k in kept]


@pytest.mark.parametrize(
    ("method", "rounder", "format", "share"),
    [
        (SingleQuant(), "gptq", "int4", 0.5),
        (SingleQuant(), "rtn", "int4", 0.5),
        (SingleQuant(rank=0, mixing="dense"), "gptq", "int4", 1.0),
        (SingleQuant(), "gptq", "nvfp4_static", 1.0),
        (SmoothQuant(), "gptq", "int4", 1.0),
    ],
    ids=["gptq", "rtn", "dense", "static scale", "another method"],
)
def test_statistics_of_some_windows_where_nobody_reads_the_rest(
    method: Method, rounder: str, format: str, share: float, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
    save_random(tmp_path, "llama", **sizes)
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 97, (32, 16), generator=torch.Generator().manual_seed(0))
    activations = ActivationQuantizer(format_of(format)) if format != "int4" else activation_quantizer(4)
    recipe = Recipe(rounder_class(rounder)(weight_quantizer(4)), activations)
    seen: list[LayerView] = []
    pipeline = Pipeline(stream, method, recipe, ids, sample=64, watch=seen.append)
    pipeline.prepare()
    next(pipeline.layers())
    assert seen[0].statistics["down"].count == share * ids.numel()


@pytest.mark.parametrize(
    ("method", "rounder", "format", "share"),
    [
        (SingleQuant(), "rtn", "int4", 0.5),
        (SingleQuant(), "gptq", "int4", 1.0),  # its Hessians are those of every window
        (SingleQuant(), "rtn", "nvfp4_static", 1.0),
        (SmoothQuant(), "rtn", "int4", 1.0),
        (QuaRot(), "rtn", "int4", 0.5),
        (RoundToNearest(), "rtn", "int4", 0.5),
        (SingleQuant(rank=0, mixing="dense"), "rtn", "int4", 1.0),
    ],
    ids=["rtn", "gptq", "static scale", "peaks", "quarot", "no transform", "dense"],
)
def test_a_full_precision_stream_carries_the_windows_that_somebody_reads(
    method: Method, rounder: str, format: str, share: float, tmp_path: Path
) -> None:
    save_random(tmp_path, "llama", hidden_size=64, intermediate_size=96, num_attention_heads=4, head_dim=16)
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 97, (32, 16), generator=torch.Generator().manual_seed(0))
    activations = ActivationQuantizer(format_of(format)) if format != "int4" else activation_quantizer(4)
    recipe = Recipe(rounder_class(rounder)(weight_quantizer(4)), activations, propagate="full_precision")
    seen: list[LayerView] = []
    pipeline = Pipeline(stream, method, recipe, ids, sample=64, watch=seen.append)
    pipeline.prepare()
    assert len(list(pipeline.layers())) == stream.count
    assert [view.statistics["down"].count for view in seen] == [share * ids.numel()] * stream.count


def test_windows_left_out_change_nothing_but_the_sample(tmp_path: Path) -> None:
    """Every second window of 32 is what a run on these 16 alone sees."""
    save_random(tmp_path, "llama", hidden_size=64, intermediate_size=96, num_attention_heads=4, head_dim=16)
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 97, (32, 16), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(rounder_class("rtn")(weight_quantizer(4)), activation_quantizer(4), propagate="full_precision")
    weights: list[list[torch.Tensor]] = []
    for windows, batch in ((ids, 8), (ids[::2], 4)):
        pipeline = Pipeline(stream, SingleQuant(), recipe, windows, batch=batch, sample=64)
        pipeline.prepare()
        layers = list(pipeline.layers())
        weights.append([buffer for layer in layers for buffer in layer.state_dict().values()])
    for found, expected in zip(*weights, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
