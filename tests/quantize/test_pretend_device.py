"""The pipeline on an accelerator, without one: nothing mixes devices, and the host waits as often as is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.checkpoints import SIZES, save_random
from pretend_device import PretendDevice
from quantizers import activation_quantizer, weight_quantizer

from sq.config.compose import compose
from sq.data.windows import Windows
from sq.evaluate.stream import StreamEvaluation
from sq.models.stream import DecoderStream
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.rounders.registry import rounder_class
from sq.runs.build import build_method

pytestmark = pytest.mark.slow

IDS = torch.randint(0, SIZES["vocab_size"], (4, 12), generator=torch.Generator().manual_seed(0))
METHODS = ("rtn", "smoothquant", "quarot", "duquant", "cat", "singlequant", "singlequant_folded", "singlequant_paper")


def kl(
    folder: Path,
    device: str,
    rounder: str = "rtn",
    method: str = "singlequant",
    *,
    packed: bool = False,
    kv: bool = True,
) -> float:
    """KL from full precision on the tokens that were calibrated on, with 4 bits everywhere."""
    stream = DecoderStream(folder, dtype=torch.float32, device=device)
    keys = activation_quantizer(4, "asymmetric", group_size=stream.dimensions.head_dim) if kv else None
    weights = rounder_class(rounder)(weight_quantizer(4))
    recipe = Recipe(weights, activation_quantizer(4), keys=keys, values=keys)
    pipeline = Pipeline(stream, build_method(compose([f"method={method}"]).method), recipe, IDS, batch=2, packed=packed)
    pipeline.prepare()
    evaluation = StreamEvaluation(stream, [Windows(IDS, "t", "")], pipeline.embeddings_and_head)
    for index, layer in enumerate(pipeline.layers()):
        evaluation.advance(index, layer)
    return float(evaluation.finish()["t"].kl.mean())


def assert_like(found: float, expected: float) -> None:
    """So small a model answers to the last digit of a sum with another code, and 48 tokens average little."""
    assert 0.5 * expected < found < 2 * expected


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretend")
    for family in ("llama", "qwen2", "qwen3"):
        save_random(folder / family, family, tied=family != "llama")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}  # Kronecker factors
    save_random(folder / "even", "llama", **sizes)
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("rounder", ["rtn", "gptq", "gptaq", "qronos"])
def test_rounders_and_families(models: Path, family: str, rounder: str) -> None:
    """Qwen2's heads of 10 features have no Hadamard matrix for keys of 4 bits."""
    kv = family != "qwen2"
    with PretendDevice():
        found = kl(models / family, "pretend", rounder, kv=kv)
    assert_like(found, kl(models / family, "cpu", rounder, kv=kv))


@pytest.mark.parametrize("method", METHODS)
def test_methods(models: Path, method: str) -> None:
    with PretendDevice():
        found = kl(models / "even", "pretend", "gptq", method)
    assert_like(found, kl(models / "even", "cpu", "gptq", method))


@pytest.mark.parametrize("method", ["quarot", "singlequant"])
def test_packed_layers(models: Path, method: str) -> None:
    with PretendDevice():
        found = kl(models / "qwen3", "pretend", "gptq", method, packed=True)
    assert_like(found, kl(models / "qwen3", "cpu", "gptq", method, packed=True))


@pytest.mark.parametrize(
    ("method", "rounder", "most"), [("quarot", "rtn", 41), ("quarot", "gptq", 67), ("singlequant", "gptq", 211)]
)
def test_waits_a_layer_do_not_grow(models: Path, method: str, rounder: str, most: int) -> None:
    """Each is a moment in which a GPU has nothing to do; evaluation included."""
    with PretendDevice() as device:
        kl(models / "llama", "pretend", rounder, method)
    assert sum(device.waits.values()) / SIZES["num_hidden_layers"] <= most, device.waits.most_common(8)


def test_the_device_refuses_what_a_gpu_would() -> None:
    with PretendDevice() as device:
        x = torch.ones(3, 4, device="pretend")
        with pytest.raises(RuntimeError, match=r"aten::add\.Tensor mixes devices"):
            x + torch.ones(3, 4)
        assert float((x + 1).sum()) == 24
        assert x[torch.tensor([0, 2])].shape == (2, 4)
        assert sum(device.waits.values()) == 1
        with pytest.raises(RuntimeError, match=r"aten::index\.Tensor mixes devices"):
            torch.ones(3, 4)[torch.tensor([0, 2], device="pretend")]
        with pytest.raises(RuntimeError, match=r"aten::index_put_ mixes devices"):
            x[torch.tensor([0, 2])] = torch.ones(2, 4)
        device.waits.clear()
        x[x > 0.5]
        torch.ones(3, 4).copy_(x)
        assert sum(device.waits.values()) == 2
