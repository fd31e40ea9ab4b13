"""Queries, keys and values inside attention: what is rounded, and that every way of calling the model sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from models.checkpoints import FAMILIES, SIZES, save_random
from models.quantized_attention import ids_of, quantized
from quantizers import activation_quantizer, rounder, weight_quantizer
from recipes import folded
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from sq.models.attention import ATTENTION
from sq.models.stream import DecoderStream
from sq.nn.attention import AttentionInput
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.rotation import Dense, PerHead, Transform, random_orthogonal

HEADS, KV_HEADS = SIZES["num_attention_heads"], SIZES["num_key_value_heads"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_forward_generate_and_lm_eval_give_the_same_logits(family: str, tmp_path: Path) -> None:
    """Bound 1e-5 of the largest logit; measured below 1e-6 (RoPE and norms of transformers compute in float32)."""
    save_random(tmp_path, family)
    model = quantized(tmp_path, folded(order=("orthogonal", "urt")))
    prompt = ids_of(1, 9)
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    plain = model(made.sequences, use_cache=False).logits
    cached = model(made.sequences).logits
    scale = float(plain.abs().max())
    assert float((cached - plain).abs().max()) < 1e-5 * scale
    stepwise = torch.stack(made.logits, 1)
    assert float((stepwise - plain[:, 8:14]).abs().max()) < 1e-5 * scale
    unquantized = DecoderStream(tmp_path, dtype=torch.float64)
    original = unquantized.assemble(list(unquantized.layers()), unquantized.embeddings_and_head())(
        made.sequences
    ).logits
    assert float((original - plain).abs().max()) > 1e-3 * scale, "nothing was rounded"

    words = ["<pad>", "<eos>", "<bos>", *(f"w{number}" for number in range(3, SIZES["vocab_size"]))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    harness = HFLM(pretrained=model, tokenizer=fast, batch_size=2, device="cpu", max_length=32)
    sequence = made.sequences[0].tolist()
    context, rest = (" ".join(words[token] for token in part) for part in (sequence[:9], sequence[9:]))
    short = " ".join(words[token] for token in sequence[:4])  # a second, shorter request: the batch is padded
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in ((context, " " + rest), (short, " w5"))]
    found = harness.loglikelihood(asked, disable_tqdm=True)[0][0]
    logs = torch.log_softmax(plain[0, 8:14].double(), -1).gather(1, made.sequences[0, 9:15, None]).sum()
    assert found == pytest.approx(float(logs), rel=1e-5)


@torch.no_grad()
def test_padding_changes_nothing_for_the_tokens_that_are_there(tmp_path: Path) -> None:
    save_random(tmp_path, "qwen3")
    model, ids = quantized(tmp_path), ids_of(1, 7)
    padded, mask = torch.cat([torch.zeros(1, 4, dtype=torch.int64), ids], 1), torch.tensor([[0] * 4 + [1] * 7])
    positions = torch.clamp(mask.cumsum(1) - 1, min=0)
    found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert ATTENTION in ALL_MASK_ATTENTION_FUNCTIONS


def by_hand(query: Tensor, key: Tensor, value: Tensor, bits: int, scale: float) -> Tensor:
    """Causal attention with keys and values rounded per token and head, written as loops over heads."""

    def rounded(x: Tensor) -> Tensor:  # (S, head_dim)
        low, high = x.min(1, keepdim=True).values, x.max(1, keepdim=True).values
        step = (high - low) / (2**bits - 1)
        zero = torch.round(-low / step)
        return (torch.clamp(torch.round(x / step) + zero, 0, 2**bits - 1) - zero) * step

    batch, heads, length, _ = query.shape
    out, causal = torch.empty_like(query), torch.ones(length, length).tril().bool()
    for b in range(batch):
        for h in range(heads):
            k, v = (rounded(x[b, h // (heads // key.shape[1])]) for x in (key, value))
            scores = (query[b, h] @ k.T * scale).masked_fill(~causal, -torch.inf)
            out[b, h] = torch.softmax(scores, 1) @ v
    return out


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_attention_equals_one_written_by_hand(bits: int, tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    model, seen = quantized(tmp_path, bits=bits), {}
    owner = model.model.layers[0].self_attn
    owner.attention_input.observer = lambda query, key: seen.update(query=query, key=key)
    owner.v_proj.register_forward_hook(lambda module, arguments, out: seen.update(value=out))
    owner.o_proj.register_forward_pre_hook(lambda module, arguments: seen.update(found=arguments[0]))
    model(ids_of(2, 11))
    value = seen["value"].view(2, 11, KV_HEADS, -1).transpose(1, 2)
    expected = by_hand(seen["query"].double(), seen["key"].double(), value, bits, owner.scaling)
    found = seen["found"].view(2, 11, HEADS, -1).transpose(1, 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [
        Dense(random_orthogonal(5, 0), orthogonal=True),
        Dense(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), orthogonal=False),
        PerHead(torch.stack([random_orthogonal(5, seed) for seed in (2, 3)])),
        PerHead(torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), False),
    ],
    ids=["shared rotation", "shared", "rotation a head", "one a head"],
)
def test_a_key_transform_keeps_every_score(transform: Transform) -> None:
    """q k^T of each query head with its own KV head, before and after; 1e-12 in float64."""
    generator = torch.Generator().manual_seed(5)
    query, key = (torch.randn(2, heads, 6, 5, dtype=torch.float64, generator=generator) for heads in (4, 2))
    value = torch.randn_like(key)
    turned_query, turned_key, same = AttentionInput(transform)(query, key, value)
    assert same is value
    for head in range(4):
        before = query[:, head] @ key[:, head // 2].mT
        after = turned_query[:, head] @ turned_key[:, head // 2].mT
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)
    assert not torch.allclose(turned_key, key)


def test_queries_are_rounded_where_asked(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    with torch.no_grad():
        without, with_ = (quantized(tmp_path, queries=asked)(ids_of(1, 8)).logits for asked in (False, True))
    assert not torch.allclose(without, with_)


def test_a_model_without_quantized_attention_carries_nothing(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    recipe = Recipe(rounder("rtn", weight_quantizer(4)), activation_quantizer(4), propagate="full_precision")
    pipeline = Pipeline(stream, folded(order=("orthogonal", "urt")), recipe, ids_of(2, 16))
    pipeline.prepare()
    layers: list[nn.Module] = list(pipeline.layers())
    assert not any(isinstance(module, AttentionInput) for layer in layers for module in layer.modules())
    assert "keys" not in {entry["site"] for entry in pipeline.record.sites}
