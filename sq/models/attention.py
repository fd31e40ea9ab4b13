"""Quantized queries, keys and values inside attention, seen by every way of calling the model: README.md here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from sq.models.cpu_attention import attend_one_query, takes_one_query

ATTENTION = "sq_sdpa"


class HeldKeys(ABC):
    """What a cache hands to attention in place of keys if it holds them in a form of its own."""

    @abstractmethod
    def attend(self, module: nn.Module, query: Tensor, attention_mask: Tensor | None, **arguments: Any) -> Tensor:
        """Attention of q (B, H, S, head_dim), behind RoPE and no more, over all cached positions: (B, S, H, head_dim).

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
    """SDPA attention behind the module's `attention_input`, if it has one; what a cache holds attends by itself.

    One query in 16 bits on a CPU attends in float32, see sq/models/cpu_attention.py.
    """
    if isinstance(key, HeldKeys):
        return key.attend(module, query, attention_mask, **arguments), None
    prepare = getattr(module, "attention_input", None)
    heads: tuple[Tensor, Tensor, Tensor] = (query, key, value) if prepare is None else prepare(query, key, value)
    if takes_one_query(heads[0], attention_mask, **arguments):
        return attend_one_query(*heads, attention_mask, **arguments), None
    result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(module, *heads, attention_mask, **arguments)
    return result


AttentionInterface.register(ATTENTION, attention)
# Without a mask function of the same name transformers passes no mask at all, and padded batches come out wrong.
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
