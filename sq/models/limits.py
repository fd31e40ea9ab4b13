"""What a model's config may claim: sizes that a decoder can have, so that a damaged or hostile one starts nothing.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

DEPTH = 20  # of sections inside one another
# The largest known: 126 layers and width 16,384 (Llama 3.1 405B), 262,144 tokens (Gemma 3), 10 M positions (Llama 4).
LIMITS = {
    "num_hidden_layers": 1_000,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**28,
}
POSITIVE = ("rms_norm_eps", "rope_theta")


def config_obstacles(config: Any) -> Iterator[str]:
    """Why a model's config.json, as it was read, cannot be that of a decoder; a sentence each."""
    if not isinstance(config, Mapping):
        yield "is no section of keys"
        return
    if _depth(config) > DEPTH:
        yield f"has sections inside one another, more than {DEPTH}"
        return
    for key, most in LIMITS.items():
        value = config.get(key)
        if value is None:  # transformers knows the family's own
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            yield f"has {key}={_short(value)}; allowed: a whole number of 1 to {most}"
    for key in POSITIVE:
        value = config.get(key)
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            yield f"has {key}={_short(value)}; allowed: a number above 0"
    heads, of_keys = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(of_keys, int) and heads > 0 and of_keys > 0 and heads % of_keys:
        yield f"has {heads} heads that {of_keys} key-value heads do not divide"


def _depth(value: Any, level: int = 1) -> int:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    if level > DEPTH:
        return level
    return max((_depth(item, level + 1) for item in inside), default=level)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _short(value: Any) -> str:
    return text if len(text := str(value)) <= 40 else f"{text[:40]}..."
