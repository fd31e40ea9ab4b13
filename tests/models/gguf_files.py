"""Writes transformers models as GGUF files, with rows of q and k as llama.cpp's converter orders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

# Of quantized types rows must be multiples of 32; heads * head_dim = 192 differs from hidden = 96.
BLOCKS = {"hidden_size": 96, "intermediate_size": 64, "head_dim": 32}
MATRICES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: str = "F32",
    *,
    architecture: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    without: Sequence[str] = (),
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model with matrices of one type, which the model's own are rounded to; vectors stay float32.

    Args:
        metadata: more keys, without the architecture in front, or other values; None leaves a key out.
        tensors: more tensors, or others.
        without: names of tensors that the file lacks.
        tokenizer: `tokens`, `merges`, numbers of the `bos` and `eos` tokens, and `pre`, what cuts words.
    """
    config = model.config
    architecture = architecture or ("llama" if config.model_type == "mistral" else config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"random {config.model_type}")  # transformers refuses files whose whole name is "mistral"
    for key, value in {**_sizes(config), **(metadata or {})}.items():
        if value is not None:
            name = f"{architecture}.{key}"
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add.get(type(value), writer.add_array)(name, value)
    if tokenizer is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(tokenizer["pre"])
        writer.add_token_list(tokenizer["tokens"])
        writer.add_token_merges(tokenizer["merges"])
        writer.add_bos_token_id(tokenizer["bos"])
        writer.add_eos_token_id(tokenizer["eos"])
    type_ = gguf.GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        *before, part, tail = name.split(".")
        theirs = (
            f"{MATRICES[part]}.{tail}"
            if before[:2] != ["model", "layers"]
            else f"blk.{before[2]}.{MATRICES[part]}.{tail}"
        )
        if parameter.ndim == 2:
            with torch.no_grad():  # the model becomes the one that the file holds
                parameter.copy_(torch.tensor(gguf.dequantize(gguf.quantize(parameter.numpy(), type_), type_)))
        values = parameter.detach()
        if architecture == "llama" and part in ("q_proj", "k_proj"):
            values = _interleaved(
                values, config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
            )
        if theirs in without or theirs in (tensors or {}):
            continue
        if values.ndim == 2:
            writer.add_tensor(theirs, gguf.quantize(values.numpy(), type_), raw_dtype=type_)
        else:
            writer.add_tensor(theirs, values.numpy())
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _sizes(config: Any) -> dict[str, Any]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "rope.dimension_count": head_dim,
        "vocab_size": config.vocab_size,
        "attention.sliding_window": config.sliding_window if config.model_type == "mistral" else None,
    }


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """Row by row: a head's rows j and j + head_dim / 2, which RoPE turns together, come to stand side by side."""
    size = rows.shape[0] // heads
    order = [h * size + half * (size // 2) + j for h in range(heads) for j in range(size // 2) for half in (0, 1)]
    return rows[order].contiguous()


def tokenizer_of(folder: Path, pre: str = "gpt-2") -> dict[str, Any]:
    """The vocabulary of a folder's byte-level BPE tokenizer, for `write_gguf`."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = content["added_tokens"][0]["id"]
    merges = [" ".join(pair) for pair in model["merges"]]
    return {"tokens": tokens, "merges": merges, "bos": special, "eos": special, "pre": pre}
