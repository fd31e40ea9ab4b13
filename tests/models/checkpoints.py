"""Small random checkpoints of every family, saved by transformers; sizes that are not powers of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

# heads * head_dim = 72 differs from hidden = 60 wherever the family allows it; three query heads share a KV head.
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 60,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 12}),
    "llama_bias": (LlamaForCausalLM, LlamaConfig, {"head_dim": 10, "attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"head_dim": 12, "sliding_window": 7}),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12}),
}
# For tests of many cases: biases everywhere and q/k norms in the quick ones, the other families in the slow ones.
EVERY_FAMILY = [
    name if name in ("llama_bias", "qwen3") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
]


def random_model(family: str, *, tied: bool = False, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of a family whose gains and biases are random too, so that a forgotten fold shows."""
    torch.manual_seed(seed)
    model_class, config_class, own = FAMILIES[family]
    config = config_class(**{**SIZES, **own, "tie_word_embeddings": tied, **overrides})
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            else:
                parameter.normal_(std=0.15)
    return model


def save_random(folder: Path, family: str, **arguments: Any) -> PreTrainedModel:
    """Save `random_model` as a folder and return it."""
    model = random_model(family, **arguments)
    model.save_pretrained(folder)
    return model
