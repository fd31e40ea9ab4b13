"""A packed bfloat16 model on a CPU: compiled sites and products give what the modules give, and see what changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import SIZES, save_random
from packed_sites import METHOD, QUANTIZERS
from quantizers import rounder, weight_quantizer
from torch import Tensor
from transformers import PreTrainedModel

from sq.formats.activation import ActivationQuantizer
from sq.kernels.int4_matmul import CpuWeight
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.nn.linear import PackedLinear
from sq.nn.site_input import SiteInput
from sq.nn.unchanged import Unchanged
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe

WEIGHTS: dict[str, dict[str, Any]] = {"plain": {}, "groups": {"group_size": 6}, "asymmetric": {"scheme": "asymmetric"}}
IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quantized(folder: Path, activations: ActivationQuantizer, **weights: Any) -> PreTrainedModel:
    stream = DecoderStream(folder, dtype=torch.bfloat16)
    ids = torch.randint(0, SIZES["vocab_size"], (4, 12), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(rounder("rtn", weight_quantizer(4, **weights)), activations)
    pipeline = Pipeline(stream, METHOD, recipe, ids, batch=2, packed=True)
    pipeline.prepare()
    return assemble(stream, list(pipeline.layers()), pipeline.embeddings_and_head)


def outputs(model: PreTrainedModel, tokens: int) -> dict[str, Tensor]:
    """Of every packed linear, each fed twice with the same noise; the second call takes what the first prepared."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, PackedLinear):
            continue
        generator = torch.Generator().manual_seed(len(name))
        x, up = (torch.randn(1, tokens, module.in_features, generator=generator).to(torch.bfloat16) for _ in range(2))
        gates = (up,) if name.endswith("down_proj") else ()
        first, found[name] = module(x, *gates), module(x.clone(), *gates)
        torch.testing.assert_close(found[name], first, rtol=0, atol=0)
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize(("quantizer", "weights"), [*((q, "plain") for q in QUANTIZERS), ("symmetric", "groups"),
                                                     ("clipped ends", "asymmetric")])  # fmt: skip
@torch.no_grad()
def test_linears_give_what_the_modules_give(
    quantizer: str, weights: str, tokens: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the few tokens where a float32 sum moved a code (half a step of 4 bits) to its neighbour."""
    save_random(tmp_path, "qwen2")  # q, k and v have biases
    model = quantized(tmp_path, QUANTIZERS[quantizer], **WEIGHTS[weights])
    torch.set_num_threads(threads)
    found = outputs(model, tokens)
    for module in model.modules():
        if isinstance(module, SiteInput):
            module.fused = False
    monkeypatch.setattr(CpuWeight, "takes", lambda *_: False)
    expected = outputs(model, tokens)
    assert found.keys() == expected.keys()
    close = [
        torch.allclose(found[name].float(), y.float(), rtol=2**-7, atol=1e-5 * float(y.abs().max()))
        for name, y in expected.items()
    ]
    assert sum(close) >= 0.9 * len(close), f"{close.count(False)} of {len(close)} linears differ"


@torch.no_grad()
def test_a_step_takes_one_call_a_site(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    model = quantized(tmp_path, QUANTIZERS["symmetric"])
    outputs(model, 1)
    linears = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert all((linear.group or linear)._decode.value is not None for linear in linears)
    states = [name for name in model.state_dict() if "prepared" in name or "decode" in name]
    assert not states


@torch.no_grad()
def test_what_changes_is_seen(tmp_path: Path) -> None:
    """Loaded weights, other quantizers, other transforms and norms: nothing stays as it was prepared."""
    save_random(tmp_path, "llama")
    model, other = (quantized(tmp_path, QUANTIZERS["symmetric"]) for _ in range(2))
    for part in other.modules():
        if isinstance(part, PackedLinear):
            part.weight_packed = part.weight_packed ^ 0x53
            part.bias = None
    one = IDS[:, :2]
    for ids in (one, IDS):
        assert not torch.equal(model(ids).logits, other(ids).logits)
    for assign in (False, True):
        other.load_state_dict(model.state_dict(), assign=assign)
        for ids in (one, IDS):
            assert torch.equal(other(ids).logits, model(ids).logits)
    site = next(m for m in model.modules() if isinstance(m, SiteInput) and m.transform is not None)
    before = model(one).logits
    site.quantizer = QUANTIZERS["clipped ends"].with_clip(0.5)
    assert not torch.equal(model(one).logits, before)
    site.quantizer = QUANTIZERS["symmetric"]
    assert torch.equal(model(one).logits, before)
    norm = model.model.layers[0].input_layernorm
    norm.weight.data = norm.weight.data * 2  # new memory, the same parameter
    norm.weight.data[0] = -3
    assert not torch.equal(model(one).logits, before)
    transform, site.transform = site.transform, None
    assert not torch.equal(model(one).logits, before)
    site.transform = transform


@torch.no_grad()
def test_copies_have_their_own(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    model = quantized(tmp_path, QUANTIZERS["symmetric"])
    expected = model(IDS[:, :2]).logits
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.model.layers[0].self_attn.o_proj))):
        for part in made.modules():
            if isinstance(part, PackedLinear | SiteInput):
                assert part._prepared.value is None
    copied = copy.deepcopy(model)
    for part in model.modules():
        if isinstance(part, PackedLinear):
            part.weight_packed.zero_()
    assert torch.equal(copied(IDS[:, :2]).logits, expected)


def test_unchanged_sees_objects_and_addresses() -> None:
    module = torch.nn.Linear(2, 2)
    module.note, module.part = "a", None
    watch = Unchanged()
    watch.watch(module, "weight", "note", "part")
    assert watch.holds()
    module.part = torch.nn.Identity()
    assert not watch.holds()
    watch = Unchanged()
    watch.watch(module, "weight")
    module.to(torch.bfloat16)
    assert not watch.holds()
