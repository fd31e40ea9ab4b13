"""SingleQuant's transforms of single heads: of values, folded, and of keys and queries after RoPE, online."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sq.models.families import ModelDimensions
from sq.models.site_transform import over_heads
from sq.rotation import Compose, PerHead, Stage, Transform, build_rotation, dense_balance


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
    blocks = [
        build_rotation(heads[:, :, head].flatten(0, 1), stages, None, seed, f"{name}, KV head {head}").matrix()
        for head in range(dimensions.kv_heads)
    ]
    return PerHead(torch.stack(blocks))


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
    of_keys = keys.unflatten(-1, (dimensions.kv_heads, -1))  # (T, kv_heads, head_dim)
    of_queries = over_heads(queries, dimensions).unflatten(-1, (dimensions.kv_heads, -1))
    blocks = []
    for head in range(dimensions.kv_heads):
        tokens = of_keys[:, head]
        parts: list[Transform] = []
        if balanced:
            readers = of_queries[:, :, head].flatten(0, 1)
            moments = (part.T.double() @ part.double() / len(part) for part in (tokens, readers))
            parts.append(dense_balance(*moments))
            tokens = parts[0](tokens)
        parts.append(build_rotation(tokens, stages, None, seed, f"{name}, keys of head {head}"))
        blocks.append(Compose(parts).matrix())
    return PerHead(torch.stack(blocks), orthogonal=not balanced)
