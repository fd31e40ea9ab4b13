"""nvfp4_static: one second scale for the weights of a site, and one from calibration for its activations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.checkpoints import SIZES, save_random
from quantizers import rounder
from recipes import folded
from torch import Tensor

from sq.checkpoint.packed_folder import CheckpointWriter
from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.catalog import NVFP4, NVFP4_STATIC
from sq.formats.qtensor import QTensor
from sq.formats.weight import WeightQuantizer
from sq.models.stream import DecoderStream
from sq.nn.site_input import SiteInput
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4}


def ids_of() -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_linears_that_engines_join_share_their_second_scale(name: str, tmp_path: Path) -> None:
    """It is that of the largest entry among them: max / (448 * 6); the activations' comes from what the site saw."""
    save_random(tmp_path, "llama", **WIDE)
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    found: dict[str, QTensor] = {}
    sites: dict[str, SiteInput] = {}

    def see(index: int, layer: torch.nn.Module, codes: dict[str, QTensor]) -> None:
        if index == 0:
            found.update(codes)
            sites.update({site: layer.get_submodule(n[0]).inputs for site, n in stream.family.linears.items()})  # type: ignore[misc]

    method, weights = folded(order=("orthogonal",), down="none"), rounder(name, WeightQuantizer(NVFP4_STATIC))
    recipe = Recipe(weights, ActivationQuantizer(NVFP4_STATIC))
    pipeline = Pipeline(stream, method, recipe, ids_of(), batch=2, coded=see)  # type: ignore[arg-type]
    pipeline.prepare()
    first = next(pipeline.layers())
    for names in stream.family.linears.values():
        seconds = [found[one].second for one in names]
        assert all(torch.equal(second, seconds[0]) for second in seconds)  # type: ignore[arg-type]
        largest = max(float((found[one].scale * 6).max()) for one in names)
        assert largest == pytest.approx(448 * 6, rel=0.2), "a clip search may shrink the largest group's range"
    assert first is not None
    for site, inputs in sites.items():
        quantizer = inputs.quantizer
        assert isinstance(quantizer, ActivationQuantizer)
        assert quantizer.peak is not None, site
        assert quantizer.peak > 0
        token = torch.full((1, 16), 0.01 * quantizer.peak)
        second = quantizer.encode(token).second
        assert second is not None
        assert float(second) == pytest.approx(quantizer.peak / (448 * 6)), "a token does not bring its own"


def test_a_value_above_the_peak_is_cut_to_it() -> None:
    """Scales end at 448 units of the second one: with the peak 1, the value 3 becomes 1."""
    quantizer = ActivationQuantizer(NVFP4_STATIC, peak=1.0)
    x = torch.zeros(1, 16)
    x[0, 0] = 3.0
    torch.testing.assert_close(quantizer(x)[0, 0], torch.tensor(1.0))
    torch.testing.assert_close(ActivationQuantizer(NVFP4)(x), x)


def test_without_calibration_it_is_refused() -> None:
    with pytest.raises(QuantizationError, match="nvfp4_static has a second scale from calibration tokens"):
        ActivationQuantizer(NVFP4_STATIC)(torch.randn(2, 16))


def test_a_packed_folder_keeps_the_peaks(tmp_path: Path) -> None:
    save_random(tmp_path / "original", "llama", **WIDE)
    stream = DecoderStream(tmp_path / "original", dtype=torch.float32)
    recipe = Recipe(rounder("rtn", WeightQuantizer(NVFP4_STATIC)), ActivationQuantizer(NVFP4_STATIC))
    method = folded(order=("orthogonal",), down="none")
    writer = CheckpointWriter(tmp_path / "packed", stream.config, {"method": "test"}, "run")
    pipeline = Pipeline(stream, method, recipe, ids_of(), batch=2, packed=True)
    pipeline.prepare()
    layer = next(pipeline.layers())
    writer.write_layer(0, layer)
    again, _ = writer.read_layer(0, stream.meta_layer(0))
    for names in stream.family.linears.values():
        quantizers = [part.get_submodule(names[0]).inputs.quantizer for part in (layer, again)]
        assert quantizers[0].peak == quantizers[1].peak is not None  # type: ignore[union-attr]
