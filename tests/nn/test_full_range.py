"""Packed layers with full_range activations: kernels do not know the grid, products of integers do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.checkpoints import SIZES, save_random
from quantizers import rounder
from recipes import folded
from torch import Tensor

from sq.checkpoint.packed_folder import CheckpointWriter
from sq.formats.activation import ActivationQuantizer
from sq.formats.format import integer
from sq.formats.weight import WeightQuantizer
from sq.models.stream import DecoderStream
from sq.nn.linear import PackedLinear, QuantizedLinear
from sq.nn.site_input import SiteInput
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe

METHOD = folded(order=("orthogonal",), down="none")


def ids_of() -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (4, 12), generator=torch.Generator().manual_seed(0))


def pipeline_of(folder: Path, *, packed: bool) -> Pipeline:
    stream = DecoderStream(folder, dtype=torch.float32)
    recipe = Recipe(rounder("rtn", WeightQuantizer(integer(4))), ActivationQuantizer(integer(4, "full_range")))
    pipeline = Pipeline(stream, METHOD, recipe, ids_of(), batch=2, packed=packed)
    pipeline.prepare()
    return pipeline


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_packed_and_fake_linears_agree(bits: int) -> None:
    """To the rounding of the float epilogue, on the same input: at a token's peak the grid has a tie."""
    generator = torch.Generator().manual_seed(0)
    weight = WeightQuantizer(integer(4)).quantize(torch.randn(10, 24, generator=generator))
    quantizer = ActivationQuantizer(integer(bits, "full_range"))
    fake = QuantizedLinear(SiteInput(None, quantizer, 1), weight.dequantize(), None)
    packed = PackedLinear(SiteInput(None, quantizer, 1), weight, None)
    x = torch.randn(3, 7, 24, generator=generator)
    torch.testing.assert_close(packed(x), fake(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_file_keeps_the_grid(tmp_path: Path) -> None:
    save_random(tmp_path / "original", "llama")
    pipeline = pipeline_of(tmp_path / "original", packed=True)
    writer = CheckpointWriter(tmp_path / "packed", pipeline.stream.config, {"method": "test"}, "run")
    layer = next(pipeline.layers())
    writer.write_layer(0, layer)
    again, _ = writer.read_layer(0, pipeline.stream.meta_layer(0))
    for part in (layer, again):
        quantizer = part.get_submodule("mlp.down_proj").inputs.quantizer
        assert quantizer.format == integer(4, "full_range")  # type: ignore[union-attr]
