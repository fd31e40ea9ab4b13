"""The pipeline on an accelerator, without one: nothing mixes devices, and the host waits as often as is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from device_memory import one_layer
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
    dtype: torch.dtype = torch.float32,
) -> float:
    """KL from full precision on the tokens that were calibrated on, with 4 bits everywhere."""
    stream = DecoderStream(folder, dtype=dtype, device=device)
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


def test_bytes_are_those_of_storages_that_live() -> None:
    with PretendDevice() as device:
        before = device.held
        x = torch.ones(100, 10, device="pretend")
        views = [x.T, x[3:], x.flatten()]
        assert device.held - before == 4000
        x += 1
        y = (x @ x.T).sum(0)  # the product, 40,000 bytes, is freed
        assert (device.held - before, device.peak - before) == (4400, 4000 + 40_000 + 400)
        del x, y
        assert device.held - before == 4000
        del views
        assert device.held == before


def test_a_bfloat16_model(models: Path) -> None:
    """Its layers are float32 while they are quantized, and change back."""
    with PretendDevice():
        found = kl(models / "even", "pretend", "gptq", dtype=torch.bfloat16)
    assert_like(found, kl(models / "even", "cpu", "gptq", dtype=torch.bfloat16))


@pytest.mark.parametrize("rounder", ["rtn", "gptq"])
def test_memory_of_a_wide_site(rounder: str) -> None:
    """GPTQ of n features holds the Hessian and three more matrices n x n, while it is factored; rtn none."""
    n = 3072
    sizes = {"hidden_size": 64, "intermediate_size": n, "vocab_size": 256, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "head_dim": 16}
    words = [f"model.architecture.{name}={value}" for name, value in sizes.items()]
    taken = one_layer(
        ["model=random_llama3_2_1b", *words, "calibration.tokens=256", "calibration.window=64", f"weights={rounder}"]
    )
    others = 4 * n * (12 * 3 * 64 + 8 * 256)  # the layer stacked, transformed, as columns, as codes; activations
    assert taken.peak < others + (4.1 * 4 * n * n if rounder == "gptq" else 0)
