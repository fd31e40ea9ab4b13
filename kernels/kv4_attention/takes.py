"""Which formats of keys and values the int4 cache takes."""

from __future__ import annotations

from ..formats import Format, grid_obstacle


def obstacle(keys_format: Format, values_format: Format, head_dim: int) -> str | None:
    """Why a cache cannot contain keys and values of these formats, or None: 4-bit integers on grids of the same kind.

    Each head of a token has one scale: no group (an asymmetric range is widened to contain 0), or one group of head_dim
    features (it is not). `kv4_append` takes one clip for both, the same on both ends of the range.
    """
    if head_dim % 2:
        return f"head_dim is {head_dim}, and two codes share a byte"
    for name, format in (("keys", keys_format), ("values", values_format)):
        if (found := grid_obstacle(format)) is not None:
            return f"{name}: {found}"
        if format.bits != 4:
            return f"{name} have {format.bits} bits, and the cache has 4"
        if format.group not in (None, head_dim):
            return f"{name} have a scale for every {format.group} features, not one for a head of {head_dim}"
    kinds = [(format.scheme, format.group) for format in (keys_format, values_format)]
    if kinds[0] != kinds[1]:
        return f"keys are of scheme {kinds[0][0]}, group {kinds[0][1]}, and values of {kinds[1][0]}, {kinds[1][1]}"
    return None
