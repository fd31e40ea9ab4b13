"""The architecture of a GGUF file as plain data of a transformers config. Nothing here imports torch.

What changes the arithmetic and is not known here is refused, so that no file is read as another model.
"""

from __future__ import annotations

import math
from typing import Any

from sq.errors import CheckpointError
from sq.models.gguf_header import BF16, F16, ArrayOf, GgufHeader
from sq.models.limits import config_obstacles

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Mistral's files call themselves llama
ROPE_FREQUENCIES = "rope_freqs.weight"
NEUTRAL = {  # keys that change the arithmetic, with the values that do not
    "expert_count": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.causal": (True,),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.type": ("none", "linear"),
}


def architecture_of(header: GgufHeader) -> dict[str, Any]:
    """A transformers config as plain data: model_type, sizes, RoPE, ties, dtype (float32 of quantized tensors).

    CheckpointError is raised for an architecture that is not in ARCHITECTURES, a missing size, and a variant of the
    architecture (experts, soft caps, RoPE scaled otherwise than linear or Llama 3's) that the layers here do not have.
    """
    name = header.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"{header.path} has architecture {name!r}; supported in GGUF files: {', '.join(ARCHITECTURES)}"
        )
    own = {k.removeprefix(f"{name}."): v for k, v in header.metadata.items() if k.startswith(f"{name}.")}
    _refuse_variants(header, name, own)

    def size(key: str) -> Any:
        if key not in own or isinstance(own[key], (ArrayOf, str)):
            got = "has none" if key not in own else "differs from layer to layer" if own[key] else "is not a number"
            raise CheckpointError(f"{header.path}: metadata {name}.{key} must be one number, it {got}")
        return own[key]

    hidden, heads = size("embedding_length"), size("attention.head_count")
    head_dim = own.get("attention.key_length", hidden // max(1, heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, head_dim) != head_dim:
            raise CheckpointError(
                f"{header.path}: metadata {name}.{key}={own[key]} differs from the {head_dim} features of a head; this "
                "variant of the architecture is not supported"
            )
    window = own.get("attention.sliding_window")
    if window and name != "llama":
        raise CheckpointError(
            f"{header.path}: {name}.attention.sliding_window={window}; supported in llama files alone"
        )
    model_type = "mistral" if window else name
    found = {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv") if "attention.head_count_kv" in own else heads,
        "head_dim": head_dim,
        "vocab_size": _vocabulary(header),
        "max_position_embeddings": size("context_length"),
        "rms_norm_eps": _decimal(size("attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rope(header, own, head_dim),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "hidden_act": "silu",
        "dtype": _dtype(header),
    }
    if window:
        found["sliding_window"] = window
    if model_type == "llama":
        found["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        found["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    for part in ("bos", "eos"):
        if (token := header.metadata.get(f"tokenizer.ggml.{part}_token_id")) is not None:
            found[f"{part}_token_id"] = token
    if wrong := list(config_obstacles(found)):
        raise CheckpointError(f"{header.path} {'; '.join(wrong)}. It is damaged; fetch it again.")
    return found


def _refuse_variants(header: GgufHeader, name: str, own: dict[str, Any]) -> None:
    for key, neutral in NEUTRAL.items():
        if key in own and own[key] not in neutral:
            raise CheckpointError(
                f"{header.path}: metadata {name}.{key}={own[key]}; supported: {' or '.join(map(str, neutral))}. Use a "
                "folder with the model's safetensors."
            )


def _vocabulary(header: GgufHeader) -> int:
    entry = header.tensors.get("token_embd.weight")
    if entry is None:
        raise CheckpointError(f"{header.path} has no tensor 'token_embd.weight': it is incomplete or holds no LLM")
    return entry.shape[0]


def _rope(header: GgufHeader, own: dict[str, Any], head_dim: int) -> dict[str, Any]:
    theta = _decimal(own.get("rope.freq_base", 10000.0))
    if ROPE_FREQUENCIES in header.tensors:
        return _llama3(header, theta, head_dim)
    if own.get("rope.scaling.type") == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": _decimal(own.get("rope.scaling.factor", 1.0))}
    return {"rope_type": "default", "rope_theta": theta}


def _llama3(header: GgufHeader, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's RoPE, of which the file has no parameters but what they make: a divisor of each frequency.

    The largest divisor is the factor; the rest is the same in every release of Llama 3, and the divisors must agree.
    """
    divisors = header.floats(ROPE_FREQUENCIES)
    factor, low, high, original = _decimal(max(divisors)), 1.0, 4.0, 8192
    wanted = []
    for index in range(head_dim // 2):
        turns = original / (2 * math.pi * theta ** (2 * index / head_dim))  # within the original context
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        wanted.append(1 / ((1 - smooth) / factor + smooth))
    if len(divisors) != len(wanted) or any(
        not math.isclose(a, b, rel_tol=1e-4) for a, b in zip(divisors, wanted, strict=True)
    ):
        raise CheckpointError(
            f"{header.path}: tensor {ROPE_FREQUENCIES!r} scales RoPE in another way than Llama 3 (low_freq_factor 1, "
            "high_freq_factor 4, 8192 original positions). Use a folder with the model's safetensors."
        )
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _dtype(header: GgufHeader) -> str:
    entry = header.tensors.get("blk.0.attn_q.weight")
    return {F16: "float16", BF16: "bfloat16"}.get(-1 if entry is None else entry.type, "float32")


def _decimal(value: float) -> float:
    """The decimal number that a float32 was written from: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")
