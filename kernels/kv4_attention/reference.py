"""Decode attention over the int4 cache in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..coded import Coded
from .cache import Kv4Cache, dequantized


def kv4_attention_reference(
    q: Tensor, cache: Kv4Cache, lengths: Tensor, starts: Tensor | None, scale: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`kv4_attention` computed in `dtype`, (B, H, D)."""
    batch, heads, head_dim = q.shape
    kv_heads = cache.keys.scale.shape[1]
    last = lengths.max() if q.device.type == "cpu" else cache.keys.scale.shape[2]  # a GPU would be waited for

    def decoded(side: Coded) -> Tensor:
        zero = None if side.zero is None else side.zero[:, :, :last]
        return dequantized(Coded(side.codes[:, :, :last], side.scale[:, :, :last], zero), cache.scheme, dtype)

    keys, values = decoded(cache.keys), decoded(cache.values)
    position = torch.arange(keys.shape[2], device=q.device)
    seen = position < lengths[:, None]
    if starts is not None:
        seen = seen & (position >= starts[:, None])
    seen = seen[:, None, None, :]  # [B, 1, 1, S]
    scores = q.to(dtype).view(batch, kv_heads, -1, head_dim) @ keys.transpose(-1, -2) * scale
    scores = scores.masked_fill(~seen, -torch.inf)
    # what is not seen may hold anything, NaN included, and a row may see nothing
    weights = torch.where(seen.any(-1, keepdim=True), torch.softmax(scores, dim=-1), 0)
    return (weights @ values.masked_fill(~seen.transpose(-1, -2), 0)).view(batch, heads, head_dim)
