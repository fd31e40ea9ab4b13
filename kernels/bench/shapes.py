"""Sizes of the models and the sweeps over them, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A Llama's sizes."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocabulary: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of the four fused linears of a layer, by site."""
        values = self.heads * self.head_dim
        return {
            "qkv": (values + 2 * self.kv_heads * self.head_dim, self.hidden),
            "o": (self.hidden, values),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }


LLAMA2_7B = Model("Llama-2-7B", 4096, 11008, 32, 32, 128, 32, 32000)
LLAMA3_8B = Model("Llama-3-8B", 4096, 14336, 32, 8, 128, 32, 128256)
LLAMA2_70B = Model("Llama-2-70B", 8192, 28672, 64, 8, 128, 80, 32000)

# n: its Kronecker factors (n1, n2), as equal as n allows
FACTORS = {
    4096: (64, 64),
    5120: (64, 80),
    8192: (64, 128),
    11008: (86, 128),
    13824: (108, 128),
    14336: (112, 128),
    28672: (128, 224),
}


@dataclass(frozen=True)
class Shapes:
    """What a suite sweeps over.

    Attributes:
        factors: Kronecker factors of every n that is rotated; those of the models' linears among them.
        rotated: n of the rotate_quantize sweep.
        tokens: its T.
        least_tokens: T from which its floors count.
        side_tokens: T of what is compared with eager torch, of the norm, SwiGLU and Hadamard rows.
        latencies: n of the rows of one token.
        norms: n of the rows with RMSNorm in front.
        block: size of the block Hadamard, and `blocks` the n it is measured at.
        hadamards: order K of the base for each n of the online Hadamard.
        models: whose linears and attention are measured.
        sites: of their linears.
        prefill, decode: M of both forms of int4_matmul.
        attention: (batch, positions) of decode attention.
        memory_batches, memory_positions: of the weight and KV memory.
        square: side of the yardsticks' matrices.
        copied: bytes of the copy that measures bandwidth.
    """

    factors: dict[int, tuple[int, int]]
    rotated: tuple[int, ...]
    tokens: tuple[int, ...]
    least_tokens: int
    side_tokens: int
    latencies: tuple[int, ...]
    norms: tuple[int, ...]
    block: int
    blocks: tuple[int, ...]
    hadamards: dict[int, int]
    models: tuple[Model, ...]
    sites: tuple[str, ...]
    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    attention: tuple[tuple[int, int], ...]
    memory_batches: tuple[int, ...]
    memory_positions: int
    square: int
    copied: int


FULL = Shapes(
    factors=FACTORS,
    rotated=tuple(FACTORS),
    tokens=(256, 2048, 4096, 8192, 32768),
    least_tokens=4096,
    side_tokens=4096,
    latencies=(4096, 11008),
    norms=(4096, 8192),
    block=128,
    blocks=(4096, 8192, 11008, 14336, 28672),
    hadamards={128: 1, 4096: 1, 5120: 20, 11008: 172, 14336: 28, 28672: 28},
    models=(LLAMA2_7B, LLAMA3_8B, LLAMA2_70B),
    sites=("qkv", "o", "gate_up", "down"),
    prefill=(2048, 8192, 32768),
    decode=(1, 16, 64),
    attention=((32, 2048), (64, 2048), (32, 8192)),
    memory_batches=(1, 16, 64),
    memory_positions=2048,
    square=4096,
    copied=2**30,
)

QUICK = Shapes(
    factors=FACTORS,
    rotated=(4096, 11008),
    tokens=(4096,),
    least_tokens=4096,
    side_tokens=4096,
    latencies=(4096,),
    norms=(4096,),
    block=128,
    blocks=(4096,),
    hadamards={128: 1},
    models=(LLAMA2_7B,),
    sites=("o", "gate_up", "down"),
    prefill=(2048,),
    decode=(1, 16, 64),
    attention=((32, 2048),),
    memory_batches=(1, 16, 64),
    memory_positions=2048,
    square=4096,
    copied=2**30,
)
