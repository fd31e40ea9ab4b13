"""Quantized queries, keys and values inside attention, seen by every way of calling the model.

The attention function ATTENTION is registered with transformers. It rounds what its module's `attention_input` says and
hands over to transformers' own SDPA attention; a module without one is left alone. Keys and values arrive after RoPE
and after the cache (models.*.modeling_*: q/k/v -> RoPE -> cache.update -> attention), so a plain forward, `generate`
and lm-eval see the same numbers: rounding per token and head gives the same result when it is read as when it was
written. A cache that rounds when it writes (sq/models/kv_cache.py) hands over `HeldKeys` in place of keys, and nothing
is rounded twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from sq.models.families import Geometry
from sq.rotation.transform import Transform

ATTENTION = "sq_sdpa"


class AttentionInput(nn.Module):
    """Transform and round queries, keys and values: q -> Q(q T^-T), k -> Q(k T), v -> Q(v).

    Args:
        transform: T on head_dim features, the same for every head, or on kv_heads * head_dim, one block a KV head whose
            query heads share it. None for none.
        queries, keys, values: quantizers along the last axis (a head's features), or None.
    """

    def __init__(
        self,
        transform: Transform | None = None,
        queries: nn.Module | None = None,
        keys: nn.Module | None = None,
        values: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.transform, self.queries, self.keys, self.values = transform, queries, keys, values
        self.observer: Callable[[Tensor, Tensor], None] | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, S, head_dim), k and v (B, kv_heads, S, head_dim), rounded; shapes and dtypes stay."""
        if self.observer is not None:
            self.observer(query, key)
        return self.asked(query, key.shape[1]), *self.rounded(self.turned(key), value)

    def asked(self, query: Tensor, kv_heads: int) -> Tensor:
        """Q(q T^-T)."""
        if self.transform is not None:
            query = on_heads(query, self.transform.inverse_transpose, self.transform.n, kv_heads)
        return query if self.queries is None else self.queries(query)

    def turned(self, key: Tensor) -> Tensor:
        """k T."""
        return key if self.transform is None else on_heads(key, self.transform, self.transform.n, key.shape[1])

    def rounded(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Q(k), Q(v) of a key that is turned already."""
        return key if self.keys is None else self.keys(key), value if self.values is None else self.values(value)

    def multiply_adds(self, geometry: Geometry) -> int:
        """Online multiply-adds a token of the layer: every key head and every query head."""
        if self.transform is None:
            return 0
        own = self.transform.multiply_adds() * geometry.head_dim // self.transform.n
        return own * (geometry.heads + geometry.kv_heads)


def on_heads(x: Tensor, apply: Callable[[Tensor], Tensor], n: int, kv_heads: int) -> Tensor:
    """Apply a map of n features to heads x (B, H, S, head_dim): n = head_dim, or all KV heads' features at once.

    Query heads share their KV head's block: head h reads KV head h // (H / kv_heads).
    """
    if n == x.shape[-1]:
        return apply(x)
    grouped = x.unflatten(1, (kv_heads, -1)).permute(0, 2, 3, 1, 4)  # (B, group, S, kv_heads, head_dim)
    mapped: Tensor = apply(grouped.flatten(-2)).unflatten(-1, (kv_heads, -1)).permute(0, 3, 1, 2, 4)
    return mapped.flatten(1, 2)


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
