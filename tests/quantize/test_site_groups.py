"""A group of features for each site: only that site's scales change, in every method, packed as fake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import SIZES, random_model
from omegaconf import OmegaConf
from quantizers import activation_quantizer, rounder, weight_quantizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from sq.baselines.duquant import DuQuant
from sq.baselines.flatquant import FlatQuant
from sq.baselines.omniquant import OmniQuant
from sq.checkpoint.packed_folder import CheckpointWriter
from sq.config.compose import compose
from sq.config.parse import as_config, parse
from sq.errors import ConfigError, QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.format import named
from sq.methods.yardsticks import RoundToNearest
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.nn.linear import QuantizedLinear
from sq.quantize.method import Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.runs.build import recipe
from sq.runs.runid import run_id

HEAD = 12  # of four heads, whose features are not the hidden size's 24
FOUR_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HEAD}
METHODS: dict[str, Any] = {
    "rtn": RoundToNearest(),
    "duquant": DuQuant(block=12, rotation_steps=4),
    "omniquant": OmniQuant(epochs=1, batch=2),
    "flatquant": FlatQuant(epochs=1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    random_model("llama", **FOUR_HEADS, num_hidden_layers=1).save_pretrained(made)
    return made


def windows() -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (4, 20), generator=torch.Generator().manual_seed(0))


def pipeline_of(folder: Path, method: Method, **more: Any) -> Pipeline:
    groups = {"o": HEAD}
    made = Recipe(rounder("rtn", weight_quantizer(4)), activation_quantizer(4, "asymmetric"), site_groups=groups)
    made = replace(made, site_clips=more.pop("site_clips", False))
    return Pipeline(DecoderStream(folder, dtype=torch.float32), method, made, windows(), batch=2, **more)


def quantized(pipeline: Pipeline) -> list[nn.Module]:
    pipeline.prepare()
    return list(pipeline.layers())


@pytest.mark.parametrize("site_clips", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_each_head_has_a_scale_at_o_and_tokens_have_one_elsewhere(name: str, site_clips: bool, folder: Path) -> None:
    (layer,) = quantized(pipeline_of(folder, METHODS[name], site_clips=site_clips))
    groups = {}
    for path, linear in layer.named_modules():
        if isinstance(linear, QuantizedLinear):
            quantizer = linear.inputs.quantizer
            assert isinstance(quantizer, ActivationQuantizer)
            groups[path.rpartition(".")[2]] = quantizer.format.group
    assert groups.pop("o_proj") == HEAD
    assert set(groups.values()) == {None}


def test_a_quiet_head_keeps_its_resolution() -> None:
    x = torch.randn(5, 4 * HEAD, generator=torch.Generator().manual_seed(0))
    x[:, :HEAD] *= 100
    grouped = Recipe(None, activation_quantizer(4), site_groups={"o": HEAD})
    whole, own = (found(x) for found in (grouped.activations_at("qkv"), grouped.activations_at("o")) if found)
    heads = [activation_quantizer(4)(head) for head in x.split(HEAD, dim=-1)]
    assert torch.equal(own, torch.cat(heads, dim=-1)), "as if each head were a token"
    assert float((own - x)[:, HEAD:].abs().max()) < 0.1 * float((whole - x)[:, HEAD:].abs().max())


@torch.no_grad()
def test_packed_folder_keeps_the_groups_and_gives_the_fake_logits(folder: Path, tmp_path: Path) -> None:
    fake = pipeline_of(folder, RoundToNearest())
    expected: PreTrainedModel = assemble(fake.stream, quantized(fake), fake.embeddings_and_head)
    packed = pipeline_of(folder, RoundToNearest(), packed=True)
    writer = CheckpointWriter(tmp_path / "packed", packed.stream.config, {"method": "test"})
    for index, layer in enumerate(quantized(packed)):
        writer.write_layer(index, layer)
    model = AutoModelForCausalLM.from_pretrained(writer.finish(packed.embeddings_and_head))
    found, logits = (one(windows()).logits for one in (model, expected))
    assert float((found - logits).square().mean() / logits.square().mean()) < 1e-3


def test_formats_with_groups_of_their_own_are_refused() -> None:
    with pytest.raises(QuantizationError, match="format nvfp4 has groups of its own"):
        ActivationQuantizer(named("nvfp4")).with_group(8)
    with pytest.raises(ConfigError, match=r"activations\.o_group=head makes groups of integers, nvfp4 has groups"):
        compose(["activations.o_group=head", "bits=nvfp4"])
    with pytest.raises(ConfigError, match=r"activations\.o_group=heads; allowed: null or 'head'"):
        compose(["activations.o_group=heads"])


def test_settings_reach_the_recipe_and_the_id_where_they_are_set() -> None:
    plain, grouped = (
        compose(["activations=asymmetric"]),
        compose(["activations=asymmetric", "activations.o_group=head"]),
    )
    assert recipe(plain, 16).site_groups == {}
    assert recipe(grouped, 16).site_groups == {"o": 16}
    assert "o_group" not in as_config(plain)["activations"], "ids of runs without it stay what they were"
    assert parse(OmegaConf.create(as_config(grouped))) == grouped
    assert run_id(plain) != run_id(grouped)
