"""How tokens and columns are cut into the tiles of the kernel, without Triton."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ..backend import LARGEST_ACCUMULATOR, LARGEST_TILE, LEAST_SIDE, SHARED_BYTES, THREADS, power_of_two_from

LARGEST_N2, LARGEST_RANK = 512, 64  # the loop along n2 is unrolled; x U of a tile stays in registers
LARGEST_N1 = 128  # R1 and a tile of all rows fit an SM, in float32 too
MOST_ROWS = 16  # that are mixed where they are made, whatever the number of tokens
FEW_TOKENS = 64  # up to here more programs may be worth more than larger tiles


class Launch(NamedTuple):
    """Tokens and columns of a program's tile, warps and pipeline stages."""

    block_t: int
    block_l: int
    warps: int
    stages: int


class Shape(NamedTuple):
    """What a launch must fit: n1 and r padded (n1 is 1 without R1, r is 0 without a low rank), n2, bytes an entry."""

    block_n1: int
    n2: int
    block_r: int
    itemsize: int
    tokens: int  # bucket


LAUNCHES = tuple(
    Launch(block_t, block_l, warps, stages)
    for block_t in (16, 32, 64, 128)
    for block_l in (16, 32, 64, 128)
    for warps in (2, 4, 8)
    for stages in (1, 2, 3)
)


def piece(n2: int) -> int:
    """Features of a row that a product takes at a time: the largest power of two from 32 to 128 that pads n2 least."""
    sizes = [size for size in (128, 64, 32) if size <= power_of_two_from(n2, 32)]
    return min(sizes, key=lambda size: (-(-n2 // size) * size, -size))


def block_n1(n1: int, mixes: bool) -> int:
    """Rows of Z that a program of the first launch keeps in registers: all where it mixes them, else one."""
    return power_of_two_from(n1) if mixes else 1


def mixes_apart(n1: int, tokens: int) -> bool:
    """Whether R1 gets a launch of its own: with many rows, a tile of all of them is too small (README.md, "Cut")."""
    return n1 > MOST_ROWS and tokens > FEW_TOKENS


def mixed_columns(n1: int, n2: int) -> int:
    """Columns of a tile of that launch, which holds all rows."""
    return min(power_of_two_from(n2, LEAST_SIDE), LARGEST_TILE // power_of_two_from(n1, LEAST_SIDE))


def block_r(rank: int) -> int:
    """Directions of the low rank, padded."""
    return power_of_two_from(rank, LEAST_SIDE) if rank else 0


def launches(shape: Shape) -> list[Launch]:
    """Every launch worth a try: it fits an SM, and is not much smaller than tokens, columns and registers allow.

    Each column tile reads x anew and each token tile B: a tile of a quarter of the largest one reads twice as much, and
    is left out where there are tokens enough to fill the GPU with larger ones.
    """
    fitting = [launch for launch in LAUNCHES if _fits(launch, shape)]
    if shape.tokens <= FEW_TOKENS:
        return fitting
    largest = max((launch.block_t * launch.block_l for launch in fitting), default=0)
    return [launch for launch in fitting if 4 * launch.block_t * launch.block_l > largest]


@cache
def tile_obstacle(n1: int, n2: int, has_first: bool, rank: int, itemsize: int) -> str | None:
    """Why the kernel does not take these sizes, or None."""
    if has_first and n1 > LARGEST_N1:
        return f"n1 = {n1}, and it mixes up to {LARGEST_N1} rows"
    if n2 > LARGEST_N2:
        return f"n2 = {n2}, and it takes blocks of up to {LARGEST_N2} features"
    if rank > LARGEST_RANK:
        return f"the low rank is {rank}, and it takes up to {LARGEST_RANK}"
    if not launches(Shape(block_n1(n1, has_first), n2, block_r(rank), itemsize, LEAST_SIDE)):
        return f"no tile of {n1} x {n2} features with a low rank of {rank} fits an SM at {itemsize} bytes an entry"
    return None


def _fits(launch: Launch, shape: Shape) -> bool:
    block_t, block_l, warps, stages = launch
    threads = 32 * warps
    columns = power_of_two_from(shape.n2, LEAST_SIDE)
    block_k = piece(shape.n2)
    sums = block_t * block_l * (shape.block_n1 + (shape.block_n1 > 1))
    corrected = block_t * (block_k + shape.block_r) if shape.block_r else 0  # x' and x U
    operands = block_k * (block_t + block_l + shape.block_r)  # of a stage
    shared = (stages * operands + corrected) * shape.itemsize + 4 * block_t * block_l
    return (
        block_t <= power_of_two_from(shape.tokens, LEAST_SIDE)
        and block_l <= columns
        and block_t * block_l >= threads
        and sums + corrected <= threads * (LARGEST_ACCUMULATOR + LARGEST_ACCUMULATOR // 4)
        and shared <= SHARED_BYTES
        and threads <= THREADS
    )
