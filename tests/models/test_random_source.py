"""Random weights: the same whenever they are read, with the moments of the distribution they are drawn from."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from models.checkpoints import FAMILIES, SIZES

import sq
from sq.data.windows import random_token_windows
from sq.errors import CheckpointError, DataError
from sq.models.random_source import RandomSource
from sq.models.stream import DecoderStream


def architecture(family: str = "llama", **overrides: Any) -> dict[str, Any]:
    own = FAMILIES[family][2]
    return {**SIZES, "model_type": family.partition("_")[0], "dtype": "float32", **own, **overrides}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_is_the_same_whenever_it_is_read(family: str) -> None:
    first, second = RandomSource(architecture(family)), RandomSource(architecture(family))
    names = first.names()
    alone, together = {name: first.read([name])[name] for name in reversed(names)}, second.read(names)
    matrices = [name for name in names if alone[name].ndim == 2]
    for name in names:
        assert torch.equal(alone[name], together[name]), name
    assert len({alone[name].flatten()[:50].sum().item() for name in matrices}) == len(matrices), "no two are alike"
    other = RandomSource(architecture(family), seed=1).read(names)
    assert not any(torch.equal(other[name], alone[name]) for name in matrices)


def test_entries_have_mean_zero_and_the_initializer_range_as_deviation() -> None:
    """Of N draws the mean lies within 5 std / sqrt(N) of 0, the deviation within 5 std / sqrt(2 N) of std, and the
    fourth moment within 5 sqrt(96 / N) of 3 std^4: normal entries, each wrong for fewer than one seed in a million."""
    std = 0.07
    source = RandomSource(architecture(hidden_size=480, intermediate_size=960, initializer_range=std))
    found = source.read(["model.layers.1.mlp.up_proj.weight"])["model.layers.1.mlp.up_proj.weight"].double()
    count = found.numel()
    assert abs(float(found.mean())) < 5 * std / sqrt(count)
    assert abs(float(found.std()) - std) < 5 * std / sqrt(2 * count)
    assert abs(float((found / std).pow(4).mean()) - 3) < 5 * sqrt(96 / count)
    rows = found @ found.T / found.shape[1] / std**2
    rows.fill_diagonal_(0)
    assert float(rows.abs().max()) < 7 / sqrt(found.shape[1]), "rows are not correlated"


def test_gains_are_one_and_biases_zero_as_transformers_initializes() -> None:
    source = RandomSource(architecture("llama_bias"))
    small = {name: tensor for name, tensor in source.read(source.names()).items() if tensor.ndim == 1}
    assert {name.rpartition(".")[2] for name in small} == {"weight", "bias"}
    for name, tensor in small.items():
        assert torch.equal(tensor, torch.full_like(tensor, 0.0 if name.endswith("bias") else 1.0)), name


@pytest.mark.parametrize("tied", [True, False])
def test_a_stream_of_random_weights_is_transformers_own_model(tied: bool) -> None:
    """The assembled stream gives the logits of transformers' model with the same tensors."""
    source = RandomSource(architecture("qwen3", tie_word_embeddings=tied))
    stream = DecoderStream(source)
    assert ("lm_head.weight" in source.names()) == (not tied)
    expected = FAMILIES["qwen3"][0](source.config).eval()
    expected.load_state_dict(source.read(source.names()), strict=False)
    expected.tie_weights()
    ids = torch.randint(0, SIZES["vocab_size"], (2, 11))
    with torch.no_grad():
        found = stream.assemble(list(stream.layers()), stream.embeddings_and_head())(ids).logits
        torch.testing.assert_close(found, expected(ids).logits, rtol=1e-5, atol=1e-6)


def test_dtype_is_the_architectures() -> None:
    stream = DecoderStream(RandomSource(architecture(dtype="bfloat16")))
    assert stream.dtype == stream.layer(0).mlp.up_proj.weight.dtype == torch.bfloat16


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"'llama' has no tensor 'model\.layers\.9"):
        RandomSource(architecture()).read(["model.layers.9.mlp.up_proj.weight"])
    with pytest.raises(CheckpointError, match="model_type is 'gpt2'; supported: llama"):
        RandomSource(architecture(model_type="gpt2"))
    with pytest.raises(CheckpointError, match=r"transformers refuses model\.architecture.*head_dim"):
        RandomSource(architecture(head_dim="wide"))


def test_random_token_windows_are_uniform_and_repeat() -> None:
    """Counts of 4 ids in N tokens: each within 5 standard deviations sqrt(N p (1 - p)) of N / 4."""
    windows = random_token_windows(4, tokens=4096, window=64, seed=3)
    assert (windows.text, windows.ids.shape) == ("random", (64, 64))
    counts = windows.ids.flatten().bincount()
    assert len(counts) == 4
    assert float((counts - 1024).abs().max()) < 5 * sqrt(4096 * 3 / 16)
    assert random_token_windows(4, tokens=4096, window=64, seed=3).fingerprint == windows.fingerprint
    assert random_token_windows(4, tokens=4096, window=64, seed=4).fingerprint != windows.fingerprint
    with pytest.raises(DataError, match="ask for a multiple: 128"):
        random_token_windows(4, tokens=100, window=64)


def test_the_python_api_quantizes_random_weights_without_a_tokenizer() -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 90, "head_dim": 16}
    changed = [f"model.architecture.{key}={value}" for key, value in sizes.items()]
    quantized = sq.quantize("random_tiny", packed=True, overrides=["calibration.tokens=256", *changed])
    assert quantized.tokenizer is None
    assert quantized.model(torch.zeros(1, 3, dtype=torch.int64)).logits.shape == (1, 3, 90)
