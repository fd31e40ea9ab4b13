"""The layer stream against transformers' own model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.checkpoints import FAMILIES, SIZES, random_model, save_random

from sq.errors import CheckpointError
from sq.models.families import ModelDimensions, check_layer, family_of
from sq.models.stream import DecoderStream


def tokens(batch: int = 2, length: int = 19) -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_streamed_and_assembled_logits_equal_transformers(family: str, tied: bool, tmp_path: Path) -> None:
    """Masks, sliding windows, rotary embeddings and tied heads are transformers' own, so logits are bitwise equal."""
    reference = save_random(tmp_path, family, tied=tied)(tokens()).logits
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    outer, layers = stream.embeddings_and_head(), list(stream.layers())
    hidden = outer.embed(tokens())
    for index, layer in enumerate(layers):
        hidden = stream.forward(index, layer, hidden)
    torch.testing.assert_close(outer.logits(hidden), reference, rtol=0, atol=0)
    assembled = stream.assemble(layers, outer)
    torch.testing.assert_close(assembled(tokens()).logits, reference, rtol=0, atol=0)


def test_sharded_checkpoint_reads_like_a_single_file(tmp_path: Path) -> None:
    model = random_model("qwen3")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (DecoderStream(tmp_path / name, dtype=torch.float32) for name in ("one", "many"))
    for a, b in zip(one.layer(1).parameters(), many.layer(1).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_skeleton_holds_no_memory(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    assert {parameter.device.type for parameter in DecoderStream(tmp_path).skeleton.parameters()} == {"meta"}


def test_generation_works_on_the_assembled_model(tmp_path: Path) -> None:
    model = save_random(tmp_path, "llama")
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    assembled = stream.assemble(list(stream.layers()), stream.embeddings_and_head())
    arguments = {"max_new_tokens": 5, "do_sample": False}
    torch.testing.assert_close(
        assembled.generate(tokens(1, 6), **arguments), model.generate(tokens(1, 6), **arguments), rtol=0, atol=0
    )


def test_geometry_reads_head_dim_that_is_not_hidden_over_heads(tmp_path: Path) -> None:
    save_random(tmp_path, "qwen3")
    dimensions = DecoderStream(tmp_path).dimensions
    assert dimensions == ModelDimensions(hidden=60, intermediate=84, heads=6, kv_heads=2, head_dim=12, layers=3)
    assert [dimensions.width(site) for site in ("qkv", "o", "gate_up", "down")] == [60, 72, 60, 84]


def test_unknown_architecture_is_refused_with_the_supported_list() -> None:
    from transformers import GPT2Config

    with pytest.raises(CheckpointError, match=r"gpt2.*llama, mistral, qwen2, qwen3"):
        family_of(GPT2Config())


def test_layer_with_unknown_parts_is_refused() -> None:
    model = random_model("qwen3")
    llama = family_of(random_model("llama").config)
    with pytest.raises(CheckpointError, match="q_norm"):
        check_layer(llama, model.model.layers[0])
