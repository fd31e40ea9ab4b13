"""How a Hadamard matrix of order K 2^m is cut into the two factors that a kernel multiplies by."""

from __future__ import annotations

from functools import cache

from ..backend import LARGEST_TILE, LEAST_SIDE, SHARED_BYTES, power_of_two_from

DENSE_LIMIT = 256  # up to this order one product by the whole matrix: up to 512 FLOP an entry, near memory-bound
DENSE_TOKENS = 64  # at a time, at least: Hopper's wide products have 64 rows


@cache
def tile_shape(k: int, powers: int, itemsize: int) -> tuple[int, int] | None:
    """(n1, n2) with n1 n2 = K 2^m and n2 a power of two, of least padded work; None if no tile fits.

    The left factor costs n1 multiply-adds an entry and the right one n2, of sides padded to powers of two; (1, n) is
    one product by all of H. `itemsize`: bytes of an entry as the products take it.
    """
    n = k * powers
    block = power_of_two_from(n, LEAST_SIDE)
    if n <= DENSE_LIMIT and block * (block + DENSE_TOKENS) * itemsize <= SHARED_BYTES:
        return 1, n
    fitting = []
    n2 = 1
    while n2 <= powers:
        block_1, block_2 = power_of_two_from(n // n2, LEAST_SIDE), power_of_two_from(n2, LEAST_SIDE)
        tile = block_1 * block_2
        if tile <= LARGEST_TILE and (block_1**2 + block_2**2 + tile) * itemsize <= SHARED_BYTES:
            fitting.append((tile * (block_1 + block_2), n // n2, n2))  # equal work: the smaller left factor
        n2 *= 2
    return min(fitting)[1:] if fitting else None


def tile_obstacle(k: int, powers: int, itemsize: int) -> str | None:
    """Why the kernel does not take tokens of K 2^m features, or None."""
    if tile_shape(k, powers, itemsize) is None:
        return f"no tile of a token of {k} x {powers} features at {itemsize} bytes an entry fits an SM"
    return None
