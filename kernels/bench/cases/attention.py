"""Decode attention over the int4 cache, and the memory of weights and cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...coded import Coded
from ...kv4_attention import kv4_append, kv4_attention, kv4_cache, kv4_partials
from ...kv4_attention.partials import split_count
from ..case import Case, Place, Row, untimed
from ..shapes import Model, Shapes
from ..yardsticks import sdpa

_WRITTEN = 512  # positions at a time when the cache is filled: bounds the bfloat16 keys that are alive


def rows(shapes: Shapes) -> Iterator[Row]:
    """Attention of every model, then its memory."""
    for model in shapes.models:
        for batch, positions in shapes.attention:
            heads = (model.heads, model.kv_heads, model.head_dim)
            case = attention(batch, *heads, positions)
            name = f"{model.name} attention B={batch} S={positions} over sdpa"
            yield Row(name, case, "speedup", sdpa(batch, *heads, positions), "attention")
    for model in shapes.models:
        for batch in shapes.memory_batches:
            ours, theirs = (memory(model, batch, shapes.memory_positions, packed) for packed in (True, False))
            name = f"{model.name} weights + KV B={batch} S={shapes.memory_positions}"
            yield Row(name, ours, "memory", theirs, "memory")


def attention(batch: int, heads: int, kv_heads: int, head_dim: int, positions: int) -> Case:
    """One query token a row over a full cache of asymmetric grids: 2 H_kv (D / 2 + 5) bytes a position."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        cache = kv4_cache(batch, kv_heads, positions, head_dim, "asymmetric", place.device)
        for first in range(0, positions, _WRITTEN):
            shape = (batch, kv_heads, min(_WRITTEN, positions - first), head_dim)
            start = torch.full((batch,), first, device=place.device)
            keys, values = place.normal(seed + first, *shape), place.normal(seed + first + 1, *shape)
            kv4_append(cache, keys, values, start, backend=place.backend)
        q = place.normal(seed + positions, batch, heads, head_dim)
        lengths = torch.full((batch,), positions, device=place.device)
        y, partials = torch.empty_like(q), None
        if place.backend != "torch" and (splits := split_count(batch * kv_heads, positions, q.device)) > 1:
            partials = kv4_partials(q, splits)
        return lambda: kv4_attention(q, cache, lengths, out=y, partials=partials, backend=place.backend)

    size = 2 * batch * kv_heads * positions * (head_dim // 2 + 5) + 4 * batch * heads * head_dim
    return Case(f"kv4_attention {heads}/{kv_heads}x{head_dim} B={batch} S={positions}", make, size, tuned=True)


def memory(model: Model, batch: int, positions: int, packed: bool) -> Case:
    """Bytes of a model and its cache: the linears in 4 bits with a float32 scale a channel, or all in bfloat16.

    Embedding, head and norms are bfloat16 in both; sizes are those of the real containers, on the meta device.
    """
    sizes = list(model.linears().values())
    rest = 2 * (2 * model.vocabulary * model.hidden + (2 * model.layers + 1) * model.hidden)
    values = batch * model.kv_heads * positions * model.head_dim
    if packed:
        weights = [
            Coded(
                torch.empty(d_out, d_in // 2, dtype=torch.uint8, device="meta"),
                torch.empty(d_out, 1, dtype=torch.float32, device="meta"),
            )
            for d_out, d_in in sizes
        ]
        cache = kv4_cache(batch, model.kv_heads, positions, model.head_dim, "asymmetric", "meta")
        tensors = [t for part in (*weights, cache.keys, cache.values) for t in part if t is not None]
        layer = sum(t.numel() * t.element_size() for t in tensors)
    else:
        layer = sum(2 * d_out * d_in for d_out, d_in in sizes) + 2 * 2 * values
    kind = "W4A4KV4" if packed else "bf16"
    return Case(f"{kind} {model.name} B={batch} S={positions}", untimed, rest + model.layers * layer)
