"""Which factor sizes the kernel takes, and the power-of-two blocks that hold them."""

from __future__ import annotations

from ..backend import LARGEST_TILE, LEAST_SIDE, SHARED_BYTES, power_of_two_from


def block_sizes(n1: int, n2: int, rotates: bool) -> tuple[int, int]:
    """(BLOCK_N1, BLOCK_N2): powers of two; with a product, BLOCK_N1 and BLOCK_N2 / 2 are at least 16."""
    least = LEAST_SIDE if rotates else 1
    return power_of_two_from(n1, least), 2 * power_of_two_from(n2 // 2, least)


def tile_obstacle(n1: int, n2: int, has_r1: bool, has_r2: bool, itemsize: int) -> str | None:
    """Why the kernel does not take these factors (n2 = n, n1 = 1 without any), or None."""
    if n2 % 2:
        return f"the two codes of a byte would lie in two rows of X, n2 = {n2} being odd"
    block_1, block_2 = block_sizes(n1, n2, has_r1 or has_r2)
    tile = block_1 * block_2
    shared = (block_1**2 * has_r1 + block_2**2 * has_r2 + tile * (has_r1 or has_r2)) * itemsize
    if tile > LARGEST_TILE or shared > SHARED_BYTES:
        return f"{n1} x {n2} features, padded to {block_1} x {block_2}, do not fit an SM at {itemsize} bytes an entry"
    return None
