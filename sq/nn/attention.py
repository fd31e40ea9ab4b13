"""What a quantized layer does to queries, keys and values in front of attention: transform, then round."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sq.models.families import ModelDimensions
from sq.rotation.transform import Transform


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
        return self.round_queries(query, key.shape[1]), *self.round_keys_and_values(self.transform_keys(key), value)

    def round_queries(self, query: Tensor, kv_heads: int) -> Tensor:
        """Q(q T^-T)."""
        if self.transform is not None:
            query = on_heads(query, self.transform.inverse_transpose, self.transform.n, kv_heads)
        return query if self.queries is None else self.queries(query)

    def transform_keys(self, key: Tensor) -> Tensor:
        """k T."""
        return key if self.transform is None else on_heads(key, self.transform, self.transform.n, key.shape[1])

    def round_keys_and_values(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Q(k), Q(v) of a key that is transformed already."""
        return key if self.keys is None else self.keys(key), value if self.values is None else self.values(value)

    def macs(self, dimensions: ModelDimensions) -> int:
        """Online multiply-adds a token of the layer: every key head and every query head."""
        if self.transform is None:
            return 0
        own = self.transform.macs() * dimensions.head_dim // self.transform.n
        return own * (dimensions.heads + dimensions.kv_heads)


def on_heads(x: Tensor, apply: Callable[[Tensor], Tensor], n: int, kv_heads: int) -> Tensor:
    """Apply a map of n features to heads x (B, H, S, head_dim): n = head_dim, or all KV heads' features at once.

    Query heads share their KV head's block: head h reads KV head h // (H / kv_heads).
    """
    if n == x.shape[-1]:
        return apply(x)
    grouped = x.unflatten(1, (kv_heads, -1)).permute(0, 2, 3, 1, 4)  # (B, group, S, kv_heads, head_dim)
    mapped: Tensor = apply(grouped.flatten(-2)).unflatten(-1, (kv_heads, -1)).permute(0, 3, 1, 2, 4)
    return mapped.flatten(1, 2)
