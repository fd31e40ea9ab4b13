"""Launches of the kernels that are worth a try for a shape. Imports no Triton."""

from __future__ import annotations

from typing import NamedTuple

from ..backend import LARGEST_ACCUMULATOR, REGISTERS, SHARED_BYTES, THREADS, power_of_two_from

DECODE_TOKENS = 64  # up to these the time is that of reading the weights
LARGEST_SUM = 2**31 - 1  # of int32 accumulators, whose products reach 2^14: both nibbles count in sixteenths
LARGEST_SPLIT_ROWS = 1024  # blocks of output features that may be split: each has a counter
_LEAST_DEPTH = 32  # bytes of a row that a tensor-core product of int8 takes


class Launch(NamedTuple):
    """Tile of output features, tokens and bytes of a row; parts that a row is split in; the rest as in Triton."""

    block_o: int
    block_t: int
    block_d: int
    split: int
    programs_per_sm: int
    warps: int
    stages: int


class Shape(NamedTuple):
    """What decides which launches fit."""

    d_out: int
    row_bytes: int
    group_bytes: int  # of a row, those that share a scale
    tokens: int  # T, rounded up to a power of two
    x_packed: bool  # activations are packed too
    float_sums: bool  # sums of products are added in float32: a second accumulator


_PREFILL_TILES = (
    (128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 4), (64, 256, 4), (128, 64, 4), (64, 64, 4),
)  # fmt: skip
PREFILL = [
    Launch(block_o, block_t, block_d, 1, programs, warps, stages)
    for block_o, block_t, warps in _PREFILL_TILES
    for block_d in (32, 64, 128)
    for stages in (3, 4)
    for programs in (1, 2)
]
DECODE = [
    Launch(block_o, block_t, block_d, split, 1, warps, stages)
    for block_t in (16, 32, 64)
    for block_o, warps in ((16, 2), (32, 2), (64, 4), (128, 4), (128, 8))
    for block_d in (32, 64, 128, 256)
    for split in (1, 2, 4, 8, 16)
    for stages in (3, 5)
]
WORKSPACE = [
    Launch(block_o, block_t, block_d, 1, programs, warps, stages)
    for block_o, block_t, warps in _PREFILL_TILES
    for block_d in (64, 128)
    for stages in (3, 4)
    for programs in (1, 2)
]
# The interpreter takes the first that fits: small tiles, so that small shapes have several, and a split of long rows.
INTERPRETED_PREFILL = [Launch(32, 16, 32, 1, 1, 4, 1)]
INTERPRETED_WORKSPACE = [Launch(32, 16, 64, 1, 1, 4, 1)]
INTERPRETED_DECODE = [Launch(32, block_t, 32, split, 1, 4, 1) for block_t in (16, 32, 64) for split in (3, 1)]


def decode_tokens(tokens: int) -> int:
    """BLOCK_T of the decode form."""
    return power_of_two_from(tokens, least=16)


def prefill_launches(shape: Shape, sms: int, interpreted: bool = False) -> list[Launch]:
    """Launches that fit an SM; of these, those that keep all SMs busy, as far as any do. Never empty."""
    if interpreted:
        return INTERPRETED_PREFILL
    return _busy(_deep([launch for launch in PREFILL if _fits(launch, shape)]), shape, sms)


def workspace_launches(shape: Shape, sms: int, interpreted: bool = False) -> list[Launch]:
    """The same of the product of bytes, whose block_d are bytes of a row of d_in. Never empty."""
    if interpreted:
        return INTERPRETED_WORKSPACE
    fitting = [launch for launch in WORKSPACE if _fits_sm(launch, launch.block_d * (launch.block_o + launch.block_t))]
    even = [launch for launch in fitting if 2 * shape.row_bytes % launch.block_d == 0]  # without a mask
    return _busy(even or fitting, shape, sms)


def decode_launches(shape: Shape, sms: int, interpreted: bool = False) -> list[Launch]:
    """Launches with one to four programs an SM, as far as any have, and several blocks to each. Never empty."""
    known = INTERPRETED_DECODE if interpreted else DECODE
    candidates = [launch for launch in known if launch.block_t == shape.tokens]
    if interpreted:
        return [launch for launch in candidates if launch.split <= _blocks(launch, shape)]
    fitting = _deep([launch for launch in candidates if _fits(launch, shape)])
    programs = {launch: _tiles(launch, shape) * launch.split for launch in fitting}
    enough = min(sms, max(programs.values()))
    limit = max(4 * sms, min(count for count in programs.values() if count >= enough))
    return [launch for launch in fitting if enough <= programs[launch] <= limit]


def workspace_entries(launches: list[Launch], d_out: int) -> int:
    """32-bit partial sums of the largest of these launches; 0 if none splits."""
    return max(
        (-(-d_out // item.block_o) * item.block_o * item.block_t * item.split for item in launches if item.split > 1),
        default=0,
    )


def _busy(fitting: list[Launch], shape: Shape, sms: int) -> list[Launch]:
    """Those that keep all SMs busy, as far as any do."""
    tiles = {launch: _tiles(launch, shape) for launch in fitting}
    enough = min(sms, max(tiles.values()))
    return [launch for launch in fitting if tiles[launch] >= enough]


def _deep(launches: list[Launch]) -> list[Launch]:
    """Those with the two largest depths: shallower ones only wait more often."""
    deepest = max(launch.block_d for launch in launches)
    return [launch for launch in launches if 2 * launch.block_d >= deepest]


def _tiles(launch: Launch, shape: Shape) -> int:
    return -(-shape.d_out // launch.block_o) * -(-shape.tokens // launch.block_t)


def _blocks(launch: Launch, shape: Shape) -> int:
    """Of a row."""
    return shape.row_bytes // shape.group_bytes * -(-shape.group_bytes // launch.block_d)


def _fits(launch: Launch, shape: Shape) -> bool:
    block_d = launch.block_d
    # a block within a group; one that divides it needs no mask
    divides = shape.group_bytes % block_d == 0
    odd = shape.group_bytes % _LEAST_DEPTH != 0
    if not divides and not (odd and block_d <= power_of_two_from(shape.group_bytes, _LEAST_DEPTH)):
        return False
    if launch.split > 1:
        blocks = -(-_blocks(launch, shape) // launch.split)
        if blocks < 2 or -(-shape.d_out // launch.block_o) > LARGEST_SPLIT_ROWS:
            return False
    stage = block_d * (launch.block_o + launch.block_t * (1 if shape.x_packed else 2))
    unpacked = 2 * block_d * launch.block_t * shape.x_packed
    return _fits_sm(launch, stage, unpacked, accumulators=2 if shape.float_sums else 1)


def _fits_sm(launch: Launch, stage: int, more: int = 0, accumulators: int = 1) -> bool:
    """Whether accumulators, stages of so many bytes and `more` of them fit an SM."""
    threads = 32 * launch.warps
    accumulator = launch.block_o * launch.block_t // threads * accumulators
    # the tile on its way to rows of tokens, at 4 bytes an entry, takes the place of the stages
    shared = max(launch.stages * stage + more, 4 * launch.block_o * launch.block_t)
    return (
        accumulator <= LARGEST_ACCUMULATOR
        and launch.programs_per_sm * threads <= THREADS
        and launch.programs_per_sm * threads * 2 * accumulator <= REGISTERS
        and launch.programs_per_sm * shared <= SHARED_BYTES
    )
