"""Quantized queries, keys and values inside attention, seen by every way of calling the model.

The attention function ATTENTION is registered with transformers. It rounds what its module's `attention_input` says and
hands over to transformers' own SDPA attention; a module without one is left alone. Keys and values arrive after RoPE
and after the cache (models.*.modeling_*: q/k/v -> RoPE -> cache.update -> attention), so a plain forward, `generate`
and lm-eval see the same numbers: rounding per token and head gives the same result when it is read as when it was
written. A cache that rounds when it writes (sq/nn/kv_cache.py) passes `HeldKeys` in place of keys, and nothing is
rounded twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

ATTENTION = "sq_sdpa"


class HeldKeys(ABC):
    """What a cache hands to attention in place of keys if it holds them in a form of its own."""

    @abstractmethod
    def attend(self, module: nn.Module, query: Tensor, attention_mask: Tensor | None, **arguments: Any) -> Tensor:
        """Attention of q (B, H, S, head_dim), behind RoPE and no more, over all that is held: (B, S, H, head_dim).

        Arguments are those of transformers' attention functions.
        """


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | HeldKeys,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """SDPA attention behind the module's `attention_input`, if it has one; what a cache holds attends by itself."""
    if isinstance(key, HeldKeys):
        return key.attend(module, query, attention_mask, **arguments), None
    prepare = getattr(module, "attention_input", None)
    heads: tuple[Tensor, Tensor, Tensor] = (query, key, value) if prepare is None else prepare(query, key, value)
    result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(module, *heads, attention_mask, **arguments)
    return result


AttentionInterface.register(ATTENTION, attention)
# Without a mask function of the same name transformers passes no mask at all, and padded batches come out wrong.
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
