"""SingleQuant's transforms of single heads: of values, folded, and of keys and queries after RoPE, online."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sq.models.families import ModelDimensions
from sq.models.site_transform import over_heads
from sq.rotation import PerHead, Stage, dense_balance, set_rotations


def value_rotations(
    tokens: Tensor, stages: Sequence[Stage], dimensions: ModelDimensions, seed: int, name: str
) -> PerHead:
    """One rotation a KV head, (kv_heads, head_dim, head_dim), from the tokens of all its query heads.

    Args:
        tokens: input of o_proj, (T, heads * head_dim).
        stages, seed: see `build_rotation`.
        name: for messages, such as "layer 3, o".
    """
    heads = over_heads(tokens, dimensions).unflatten(-1, (dimensions.kv_heads, dimensions.head_dim))
    of_head = heads.permute(2, 0, 1, 3).flatten(1, 2)  # (T, group, kv_heads, head_dim) as (kv_heads, T group, head_dim)
    return PerHead(set_rotations(of_head, stages, seed, f"{name}, KV head"))


def key_blocks(
    keys: Tensor,
    queries: Tensor,
    stages: Sequence[Stage],
    dimensions: ModelDimensions,
    seed: int,
    name: str,
    *,
    balanced: bool,
) -> PerHead:
    """One block a KV head, (kv_heads, head_dim, head_dim), for its keys; the queries that read them take its inverse.

    Args:
        keys: after RoPE, (T, kv_heads * head_dim).
        queries: after RoPE, (T, heads * head_dim).
        stages, seed: see `build_rotation`.
        name: for messages, such as "layer 3".
        balanced: put a dense balance of keys and queries before the rotation.
    """
    of_keys = keys.unflatten(-1, (dimensions.kv_heads, -1)).transpose(0, 1)  # (kv_heads, T, head_dim)
    of_queries = over_heads(queries, dimensions).unflatten(-1, (dimensions.kv_heads, -1))
    blocks = torch.eye(of_keys.shape[-1], dtype=torch.float64, device=keys.device).expand(dimensions.kv_heads, -1, -1)
    if balanced:
        made = []
        for head, tokens in enumerate(of_keys):
            readers = of_queries[:, :, head].flatten(0, 1)
            moments = (part.T.double() @ part.double() / len(part) for part in (tokens, readers))
            made.append(dense_balance(*moments).matrix())
        blocks = torch.stack(made)
        of_keys = of_keys @ blocks.to(of_keys.dtype)
    return PerHead(blocks @ set_rotations(of_keys, stages, seed, f"{name}, keys of head"), orthogonal=not balanced)
