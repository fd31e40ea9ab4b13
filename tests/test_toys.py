"""A new format is one file with a line of registration, and so is a new weight rounder: both run as the others do."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import sq
from sq.config.compose import compose
from sq.errors import ConfigError
from sq.formats import format
from sq.nn.linear import PackedLinear, QuantizedLinear
from sq.quantize.rounders import registry

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def toys() -> Iterator[None]:
    """Both toys are registered for the tests of this file, and unknown to the others of the same process."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (format, registry):
            patch.setattr(module, "_registry", dict(module._registry))
        importlib.import_module("toys.int5g8")

        registry.register_rounder("truncate", "toys.truncate:Truncate")
        yield


def quantized(overrides: Sequence[str] = (), **options: Any) -> Any:
    small = ["model.architecture.num_hidden_layers=2", "model.dtype=float32", "calibration.tokens=256"]
    return sq.quantize("random_tiny", overrides=[*small, *overrides], **options)


@pytest.mark.parametrize("weights", ["rtn", "gptq"])
@pytest.mark.parametrize("method", ["rtn", "smoothquant", "singlequant"])
def test_a_registered_format_is_quantized_packed_and_loaded(tmp_path: Path, weights: str, method: str) -> None:
    order = ["weights.clip=1.0", *(["method.order=[orthogonal,urt]"] if method == "singlequant" else [])]
    fake, packed = (
        quantized(method=method, bits="int5g8kv4", weights=weights, packed=way, overrides=order)
        for way in (False, True)
    )
    linear = packed.model.model.layers[0].mlp.up_proj
    assert isinstance(linear, PackedLinear)
    assert linear.format.name == "int5g8"
    assert linear.weight_scale.dtype == torch.float16
    assert fake.metrics["model/bits_per_weight"] == 5 + 16 / 8
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
        pair = [run.model.model.layers[1].get_submodule(name) for run in (fake, packed)]
        assert torch.equal(pair[0].weight, pair[1].qweight.dequantize())
    ids = torch.arange(24)[None]
    with torch.no_grad():
        outputs = [run.model(ids, output_hidden_states=True) for run in (fake, packed)]
        # A float32 sum may put an activation into the next cell, and a random model amplifies it: the
        # weights are the same everywhere, and the first layer's output is that of the same input.
        expected, first = (output.hidden_states[1] for output in outputs)
        error = float((first - expected).abs().median() / expected.square().mean().sqrt())
        assert error < 1e-5, error
        found = outputs[1].logits
        sq.save_packed(packed.model, tmp_path / "packed", packed.tokenizer)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")(ids).logits
    torch.testing.assert_close(again, found, rtol=0, atol=0)


def test_the_config_check_knows_a_registered_format() -> None:
    assert compose(["bits=wint5g8a8"]).bits.label == "WINT5G8A8KV16"
    with pytest.raises(ConfigError, match="int5g8 in groups of 8 does not divide the model's"):
        compose(["model=random_tiny", "task=none", "bits=int5g8", "model.architecture.intermediate_size=100"])
    with pytest.raises(ConfigError, match=r"int5g7.*int5g8"):
        compose(["bits=int5g7"])


def test_a_registered_rounder_rounds_with_its_own_option() -> None:
    chosen = ["weights.name=truncate", "weights.clip=1.0"]
    found = quantized(method="rtn", bits="w4a16", overrides=[*chosen, "+weights.share=0.5"])
    plain = quantized(method="rtn", bits="w16a16")
    for layer, original in zip(found.model.model.layers, plain.model.model.layers, strict=True):
        linear, weight = layer.self_attn.q_proj, original.self_attn.q_proj.weight / 2
        assert isinstance(linear, QuantizedLinear)
        step = weight.abs().amax(1, keepdim=True) / 7
        expected = torch.trunc(weight / step * (1 + 1e-6)) * step
        torch.testing.assert_close(linear.weight, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(ConfigError, match=r"weights.share=half; allowed: a number"):
        compose([*chosen, "+weights.share=half"])
    with pytest.raises(ConfigError, match=r"weights.sharp is unknown; did you mean share"):
        compose([*chosen, "+weights.sharp=1"])
