"""Packed layers whose sites compute what stands in front of them: nothing but the number of passes changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import FAMILIES, SIZES, save_random
from packed_sites import METHOD, QUANTIZERS
from quantizers import activation_quantizer, rounder, weight_quantizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from sq.formats.activation import ActivationQuantizer
from sq.models.families import SITES, family_of
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.nn.linear import PackedLinear, QuantizedLinear
from sq.nn.packed_group import PackedGroup
from sq.nn.site_input import DeferredNorm, SiteInput
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe

OTHERS = tuple(QUANTIZERS)[1:]


def quantized(
    folder: Path, *, packed: bool, activations: ActivationQuantizer | None, **weights: Any
) -> PreTrainedModel:
    stream = DecoderStream(folder, dtype=torch.float32)
    ids = torch.randint(0, SIZES["vocab_size"], (4, 12), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(rounder("rtn", weight_quantizer(4, **weights)), activations)
    pipeline = Pipeline(stream, METHOD, recipe, ids, batch=2, packed=packed)
    pipeline.prepare()
    return assemble(stream, list(pipeline.layers()), pipeline.embeddings_and_head)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def site_outputs(layer: nn.Module, config: Any, x: Tensor, *, packed: bool) -> dict[str, Tensor]:
    """Outputs of all linears of a layer, each site fed with the same x: before the norm, or a gate with another up."""
    family = family_of(config)
    outputs = {}
    for site in SITES:
        arguments: tuple[Tensor, ...] = (x,)
        if site in family.norms and not packed:
            arguments = (layer.get_submodule(family.norms[site])(x),)
        elif site in ("o", "down"):
            first = layer.get_submodule(family.linears[site][0])
            arguments = (noise(*x.shape[:-1], first.in_features),)
            if site == "down":
                up = noise(*x.shape[:-1], first.in_features, seed=2)
                arguments = (*arguments, up) if packed else (nn.functional.silu(arguments[0]) * up,)
        outputs |= {name: layer.get_submodule(name)(*arguments) for name in family.linears[site]}
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "quantizer"),
    [*((family, "symmetric") for family in FAMILIES), *(("llama_bias", name) for name in OTHERS)],
)
@torch.no_grad()
def test_packed_and_fake_agree_at_every_linear(family: str, quantizer: str, tmp_path: Path) -> None:
    """Fed with the same input a packed linear gives the fake one's output to 1e-5 of its largest entry: float32 sums.

    Whole models part where such a difference moves an activation over the edge of its cell (half a step of 4 bits).
    """
    save_random(tmp_path, family)
    fake, packed = (quantized(tmp_path, packed=way, activations=QUANTIZERS[quantizer]) for way in (False, True))
    assert sum(isinstance(module, QuantizedLinear) for module in fake.modules()) == 7 * SIZES["num_hidden_layers"]
    for layer, other in zip(fake.model.layers, packed.model.layers, strict=True):
        x = noise(3, 5, SIZES["hidden_size"])
        expected = site_outputs(layer, fake.config, x, packed=False)
        found = site_outputs(other, fake.config, x, packed=True)
        for name, y in expected.items():
            torch.testing.assert_close(found[name], y, rtol=0, atol=1e-5 * float(y.abs().max()))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@torch.no_grad()
def test_one_kernel_for_all_steps_gives_the_same_codes(quantizer: str, tmp_path: Path) -> None:
    """Codes of the fused form are those of the modules, but for activations that float32 sums put on an edge."""
    save_random(tmp_path, "qwen2")
    model = quantized(tmp_path, packed=True, activations=QUANTIZERS[quantizer])
    sites = [module for module in model.modules() if isinstance(module, SiteInput)]
    assert any(site.norm is not None for site in sites)
    assert any(site.transform is not None for site in sites)
    for site in sites:
        width = next(m.in_features for m in model.modules() if isinstance(m, PackedLinear) and m.inputs is site)
        x = noise(64, width)
        up = None if site.norm is not None or site.transform is None else noise(64, width, seed=2)
        site.fused, site.readers = False, 1
        apart = site.packed(x, up)
        site.fused = True
        fused = site.packed(x, up)
        difference = (apart.codes.int() - fused.codes.int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 1e-3
        torch.testing.assert_close(fused.scale, apart.scale, rtol=1e-6, atol=0)


@torch.no_grad()
def test_the_joined_linears_hold_their_codes_once(tmp_path: Path) -> None:
    save_random(tmp_path, "qwen2")  # q, k and v have biases
    model = quantized(tmp_path, packed=True, activations=activation_quantizer(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[1, 2, 3]])
    logits = model(ids).logits
    attention = model.model.layers[0].self_attn
    group = attention.q_proj.group
    assert isinstance(group, PackedGroup)
    assert attention.v_proj.group is group
    storages = {linear.weight_packed.untyped_storage().data_ptr() for linear in group.linears}
    assert len(storages) == 1
    assert group._kept is None, "the last reader lets go of the result"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    moved = copy.deepcopy(model).to(torch.float32)
    moved.model.layers[0].self_attn.k_proj.weight_packed = before["model.layers.0.self_attn.k_proj.weight_packed"]
    torch.testing.assert_close(moved(ids).logits, logits, rtol=0, atol=0)


@torch.no_grad()
def test_other_weights_are_seen_after_loading_them(tmp_path: Path) -> None:
    """Joined codes belong to the linears: a state dict that is loaded later counts."""
    save_random(tmp_path, "llama")
    model, other = (quantized(tmp_path, packed=True, activations=activation_quantizer(4)) for _ in range(2))
    ids = torch.tensor([[1, 2, 3]])
    expected = model(ids).logits
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in other.state_dict().items():
        if name.endswith(("weight_packed", "weight_scale")):
            tensor.zero_()
    assert not torch.allclose(other(ids).logits, expected)
    for assign in (False, True):
        other.load_state_dict(state, assign=assign)
        torch.testing.assert_close(other(ids).logits, expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [{}, {"group_size": 6}, {"scheme": "asymmetric"}])
@torch.no_grad()
def test_without_activation_bits_packed_equals_fake(weights: dict[str, Any], tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    fake, packed = (quantized(tmp_path, packed=way, activations=None, **weights)(ids).logits for way in (False, True))
    torch.testing.assert_close(packed, fake, rtol=0, atol=1e-5 * float(fake.abs().max()))


@torch.no_grad()
def test_a_gate_other_than_silu_is_left_alone(tmp_path: Path) -> None:
    save_random(tmp_path, "llama", hidden_act="gelu")
    fake, packed = (quantized(tmp_path, packed=way, activations=activation_quantizer(8)) for way in (False, True))
    assert type(packed.model.layers[0].mlp) is type(fake.model.layers[0].mlp)
    assert isinstance(packed.model.layers[0].input_layernorm, DeferredNorm)
    ids = torch.tensor([[5, 6, 7, 8]])
    difference = (packed(ids).logits - fake(ids).logits).abs()
    assert difference.median() < 1e-3 * fake(ids).logits.square().mean().sqrt()
