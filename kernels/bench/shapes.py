"""Sizes of the models and the sweeps over them, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
    4096: (64, 64), 5120: (64, 80), 8192: (64, 128), 11008: (86, 128), 13824: (108, 128), 14336: (112, 128),
    28672: (128, 224),
}  # fmt: skip


@dataclass(frozen=True)
class Shapes:
    """What a suite sweeps over."""

    factors: dict[int, tuple[int, int]]  # Kronecker factors of every n that is rotated, of the linears' among them
    rotated: tuple[int, ...]  # n of the rotate_quantize sweep
    tokens: tuple[int, ...]  # its T
    least_tokens: int  # T from which its floors count
    side_tokens: int  # T of the rows over eager torch, and of the norm, SwiGLU and Hadamard rows
    latencies: tuple[int, ...]  # n of the rows of one token
    norms: tuple[int, ...]  # n of the rows with RMSNorm in front
    block: int  # size of the block Hadamard
    blocks: tuple[int, ...]  # n that it is measured at
    hadamards: dict[int, int]  # order K of the base for each n of the online Hadamard
    block_products: tuple[tuple[int, int, int], ...]  # (n1, n2, r)
    fourth_moments: tuple[tuple[int, int, int], ...]  # (sets, m, T) of a step of fourth-moment rotations
    models: tuple[Model, ...]  # whose linears and attention are measured
    sites: tuple[str, ...]  # of their linears
    prefill: tuple[int, ...]  # M of this form of int4_matmul
    decode: tuple[int, ...]  # M of the other form
    attention: tuple[tuple[int, int], ...]  # (batch, positions) of decode attention
    memory_batches: tuple[int, ...]  # of the weight and KV memory
    memory_positions: int
    square: int  # side of the yardsticks' matrices
    copied: int  # bytes of the copy that measures bandwidth


FULL = Shapes(
    factors=FACTORS, rotated=tuple(FACTORS), tokens=(256, 2048, 4096, 8192, 32768), least_tokens=4096, side_tokens=4096,
    latencies=(4096, 11008), norms=(4096, 8192), block=128, blocks=(4096, 8192, 11008, 14336, 28672),
    hadamards={128: 1, 4096: 1, 5120: 20, 11008: 172, 14336: 28, 28672: 28},
    block_products=((32, 128, 0), (32, 128, 16), (64, 64, 16), (9, 64, 16), (112, 128, 0)),
    fourth_moments=((1, 4096, 16384), (8, 128, 16384), (1, 128, 2**20)),
    models=(LLAMA2_7B, LLAMA3_8B, LLAMA2_70B), sites=("qkv", "o", "gate_up", "down"),
    prefill=(2048, 8192, 32768), decode=(1, 16, 64), attention=((32, 2048), (64, 2048), (32, 8192)),
    memory_batches=(1, 16, 64), memory_positions=2048, square=4096, copied=2**30,
)  # fmt: skip

QUICK = replace(
    FULL, rotated=(4096, 11008), tokens=(4096,), latencies=(4096,), norms=(4096,), blocks=(4096,), hadamards={128: 1},
    block_products=((32, 128, 16),), fourth_moments=((1, 4096, 16384),),
    models=(LLAMA2_7B,), sites=("o", "gate_up", "down"), prefill=(2048,), attention=((32, 2048),),
)  # fmt: skip
