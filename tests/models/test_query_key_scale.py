"""A scale of keys folded in front of RoPE: queries take its inverse, and attention never knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.checkpoints import FAMILIES, SIZES, save_random
from models.test_invariance import exact_norms  # noqa: F401
from torch import Tensor, nn

from sq.models.fold import fold_query_key
from sq.models.stream import DecoderStream
from sq.nn.attention import AttentionInput


def scale_of(stream: DecoderStream, heads: int, seed: int = 0) -> Tensor:
    """Factors between 0.3 and 3 of either sign."""
    generator = torch.Generator().manual_seed(seed)
    shape = (heads, stream.dimensions.head_dim // 2)
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return signs * 10 ** (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5)


def seen_inside(stream: DecoderStream, layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output of a layer, and the queries and keys that its attention gets."""
    seen: list[Tensor] = []
    owner = layer.get_submodule(stream.family.attention)
    owner.attention_input = AttentionInput()
    owner.attention_input.observer = lambda query, key: seen.extend((query, key))
    with torch.no_grad():
        out = stream.forward(0, layer, hidden)
    del owner.attention_input
    return out, seen[0], seen[1]


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("shared", [True, False], ids=["one t", "t of each KV head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_is_unchanged_while_keys_are_scaled(family: str, shared: bool, tmp_path: Path) -> None:
    """Bound 1e-10 of the largest output; keys themselves are k t and queries q / t, group by group."""
    save_random(tmp_path, family)
    stream = DecoderStream(tmp_path, dtype=torch.float64)
    dimensions = stream.dimensions
    if stream.family.head_norms and not shared:
        pytest.skip("gains of head norms are shared by all heads")
    t = scale_of(stream, 1 if shared else dimensions.kv_heads)
    hidden = torch.randn(2, 11, dimensions.hidden, dtype=torch.float64)
    layer = stream.layer(0)
    out, queries, keys = seen_inside(stream, layer, hidden)
    fold_query_key(stream.family, layer, t, dimensions)
    scaled_out, scaled_queries, scaled_keys = seen_inside(stream, layer, hidden)
    assert float((scaled_out - out).abs().max() / out.abs().max()) < 1e-10
    for head in range(dimensions.kv_heads):
        factor = t[0 if shared else head].repeat(2)
        torch.testing.assert_close(scaled_keys[:, head], keys[:, head] * factor, rtol=1e-5, atol=1e-5)
        group = dimensions.heads // dimensions.kv_heads
        for query in range(head * group, (head + 1) * group):
            torch.testing.assert_close(scaled_queries[:, query], queries[:, query] / factor, rtol=1e-5, atol=1e-5)


def test_a_factor_for_each_channel_would_not_be_exact(tmp_path: Path) -> None:
    """Why one factor covers a pair: RoPE mixes channels i and i + head_dim / 2, and scaling them apart shows."""
    save_random(tmp_path, "llama")
    stream = DecoderStream(tmp_path, dtype=torch.float64)
    layer, hidden = stream.layer(0), torch.randn(1, 11, stream.dimensions.hidden, dtype=torch.float64)
    out, *_ = seen_inside(stream, layer, hidden)
    channels = torch.linspace(0.5, 2, stream.dimensions.head_dim, dtype=torch.float64)
    query, key, _ = (layer.get_submodule(name) for name in stream.family.linears["qkv"])
    query.weight.data /= channels.repeat(stream.dimensions.heads)[:, None]
    key.weight.data *= channels.repeat(stream.dimensions.kv_heads)[:, None]
    wrong, *_ = seen_inside(stream, layer, hidden)
    assert float((wrong - out).abs().max() / out.abs().max()) > 1e-2


@pytest.mark.parametrize(("family", "allowed"), [("llama", r"\(1, 6\), \(2, 6\)"), ("qwen3", r"\[\(1, 6\)\]")])
@pytest.mark.parametrize("shape", [(2, 12), (6, 6), (6,), (3, 6)], ids=str)
def test_other_shapes_are_refused(family: str, allowed: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    save_random(tmp_path, family)
    stream = DecoderStream(tmp_path)
    assert stream.dimensions.kv_heads == SIZES["num_key_value_heads"] == 2
    with pytest.raises(ValueError, match=rf"{family} has shape .*allowed: .*{allowed}"):
        fold_query_key(stream.family, stream.layer(0), torch.ones(shape), stream.dimensions)


def test_head_norms_refuse_a_scale_of_each_head(tmp_path: Path) -> None:
    save_random(tmp_path, "qwen3")
    stream = DecoderStream(tmp_path)
    with pytest.raises(ValueError, match=r"shape \(2, 6\); allowed: \[\(1, 6\)\]"):
        fold_query_key(stream.family, stream.layer(0), torch.ones(2, 6), stream.dimensions)
