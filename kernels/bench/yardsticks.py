"""What the kernels are compared with, in the same process: copy, torch's products, sdpa, eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kv4_attention import Kv4Cache, kv4_append, kv4_cache, rope_reference
from ..nibbles import pack_nibbles
from ..rotate_quantize import rotate_quantize
from .case import Case, Place

_FP8 = torch.float8_e4m3fn


def copy(size: int) -> Case:
    """A buffer of `size` bytes to another: what "copy bandwidth" means here."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        source = place.normal(seed, size // 2)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return Case(f"copy {size} B", make, 2 * size)


def bf16_matmul(tokens: int, d_out: int, d_in: int) -> Case:
    """x W^T in bfloat16, by cuBLAS."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x, w = place.normal(seed, tokens, d_in), place.normal(seed + 1, d_out, d_in)
        y = place.empty(tokens, d_out)
        return lambda: torch.mm(x, w.T, out=y)

    size = 2 * (d_out * d_in + tokens * d_in + tokens * d_out)
    return Case(f"bf16 matmul {d_out}x{d_in} M={tokens}", make, size, 2 * tokens * d_out * d_in)


def int_mm(tokens: int, d_out: int, d_in: int) -> Case:
    """torch._int_mm of the very int4-valued operands that int4_matmul gets, int32 output."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        (x, _), (w, _) = int4_operands(place, seed, tokens, d_out, d_in)
        y = place.empty(tokens, d_out, dtype=torch.int32)
        return lambda: torch._int_mm(x, w.T, out=y)

    size = d_out * d_in + tokens * d_in + 4 * tokens * d_out
    return Case(f"_int_mm {d_out}x{d_in} M={tokens}", make, size, 2 * tokens * d_out * d_in)


def int_mm_scaled(tokens: int, d_out: int, d_in: int) -> Case:
    """The same, and one kernel behind it that scales int32 to bfloat16: 10 bytes an output entry in all."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        (x, x_scale), (w, w_scale) = int4_operands(place, seed, tokens, d_out, d_in)
        sums, y = place.empty(tokens, d_out, dtype=torch.int32), place.empty(tokens, d_out)

        def run() -> Tensor:
            torch._int_mm(x, w.T, out=sums)
            if place.backend == "torch":
                return y.copy_(sums * x_scale * w_scale.T)
            from .triton_scale import scale

            return scale(sums, x_scale, w_scale, y)

        return run

    size = d_out * d_in + tokens * d_in + 10 * tokens * d_out + 4 * (tokens + d_out)
    return Case(f"_int_mm scaled {d_out}x{d_in} M={tokens}", make, size, 2 * tokens * d_out * d_in)


def fp8_matmul(tokens: int, d_out: int, d_in: int) -> Case:
    """torch._scaled_mm of e4m3 operands, bfloat16 output: the other 8-bit product of the hardware."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, d_in).to(_FP8)
        w = place.normal(seed + 1, d_out, d_in).to(_FP8)
        one = torch.ones((), device=place.device)
        return lambda: torch._scaled_mm(x, w.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    size = d_out * d_in + tokens * d_in + 2 * tokens * d_out
    return Case(f"fp8 matmul {d_out}x{d_in} M={tokens}", make, size, 2 * tokens * d_out * d_in)


def eager_rotate_quantize(tokens: int, n1: int, n2: int) -> Case:
    """Two matmuls, a maximum, rounding and packing in eager bfloat16, each its own kernels; bytes: the fused count."""
    n = n1 * n2

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, n)
        r1, r2 = factors(place, seed, n1, n2)

        def run() -> tuple[Tensor, Tensor]:
            y = ((r1.T @ x.view(tokens, n1, n2)) @ r2).view(tokens, n)
            scale = y.abs().amax(-1, keepdim=True) / 7
            return pack_nibbles((y / scale).round_().clamp_(-8, 7)), scale

        return run

    return Case(f"eager rotate_quantize {n} T={tokens}", make, tokens * (5 * n // 2 + 4), 2 * tokens * n * (n1 + n2))


def eager_block_product(tokens: int, n1: int, n2: int, rank: int) -> Case:
    """Two thin matmuls, a batched one and a matmul by R1 in eager bfloat16; bytes: the fused count."""
    n = n1 * n2

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, n)
        blocks, first, low_rank = block_operands(place, seed, n1, n2, rank)

        def run() -> Tensor:
            rows = x if low_rank is None else torch.addmm(x, x @ low_rank[0], low_rank[1].T)
            y = torch.bmm(rows.view(tokens, n1, n2).transpose(0, 1), blocks)  # [n1, T, n2]
            return (first.T @ y.view(n1, -1)).view(n1, tokens, n2).transpose(0, 1).reshape(tokens, n)

        return run

    size = 4 * tokens * n + 2 * (n * n2 + n1 * n1 + 2 * n * rank)
    return Case(f"eager block_product {n1}x{n2} r={rank} T={tokens}", make, size, 2 * tokens * n * (n2 + n1 + 2 * rank))


def sdpa(batch: int, heads: int, kv_heads: int, head_dim: int, positions: int) -> Case:
    """torch's scaled_dot_product_attention over a bfloat16 cache, one query token a row."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        q = place.normal(seed, batch, heads, 1, head_dim)
        k, v = (place.normal(seed + i, batch, kv_heads, positions, head_dim) for i in (1, 2))
        attend = torch.nn.functional.scaled_dot_product_attention
        return lambda: attend(q, k, v, enable_gqa=heads != kv_heads)

    size = 4 * batch * kv_heads * positions * head_dim + 4 * batch * heads * head_dim
    return Case(f"sdpa {heads}/{kv_heads}x{head_dim} B={batch} S={positions}", make, size)


def eager_rope_append(batch: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    """RoPE of queries and keys in eager bfloat16, each operation a kernel of its own, then kv4_append."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        cache, q, k, v, cos, sin, positions = new_tokens(place, seed, batch, heads, kv_heads, head_dim)

        def run() -> Tensor:
            kv4_append(cache, rope_reference(k, cos, sin), v, positions, backend=place.backend)
            return rope_reference(q, cos, sin)

        return run

    size = rope_append_size(batch, heads, kv_heads, head_dim)
    return Case(f"eager RoPE + kv4_append {heads}/{kv_heads}x{head_dim} B={batch}", make, size)


def rope_append_size(batch: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Bytes: queries read and written, keys and values read, codes with scale and zero written, cos and sin."""
    return batch * (4 * heads * head_dim + kv_heads * (4 * head_dim + 2 * (head_dim // 2 + 5)) + 4 * head_dim)


def new_tokens(
    place: Place, seed: int, batch: int, heads: int, kv_heads: int, head_dim: int
) -> tuple[Kv4Cache, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """An asymmetric cache of 8 positions, q, k, v, cos and sin of a token a row, and the positions they go to."""
    cache = kv4_cache(batch, kv_heads, 8, head_dim, "asymmetric", place.device)
    q, k, v = (place.normal(seed + i, batch, h, 1, head_dim) for i, h in enumerate((heads, kv_heads, kv_heads)))
    angles = place.normal(seed + 3, batch, 1, head_dim)
    return cache, q, k, v, angles.cos(), angles.sin(), torch.full((batch,), 5, device=place.device)


def factors(place: Place, seed: int, n1: int, n2: int) -> tuple[Tensor, Tensor]:
    """R1 (n1, n1) and R2 (n2, n2) of normal numbers, scaled as rotations are."""
    r1, r2 = (place.normal(seed + i, m, m) / m**0.5 for i, m in ((2, n1), (3, n2)))
    return r1, r2


def block_operands(
    place: Place, seed: int, n1: int, n2: int, rank: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Blocks (n1, n2, n2), R1 (n1, n1), and U, V (n, r) or None, of normal numbers, scaled as rotations are."""
    n = n1 * n2
    blocks = place.normal(seed + 2, n1, n2, n2) / n2**0.5
    first = place.normal(seed + 3, n1, n1) / n1**0.5
    if not rank:
        return blocks, first, None
    return blocks, first, (place.normal(seed + 4, n, rank) / n**0.5, place.normal(seed + 5, n, rank) / rank**0.5)


def int4_operands(
    place: Place, seed: int, tokens: int, d_out: int, d_in: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Codes int8 (rows, d_in) and scales (rows, 1) of quantized normal numbers: of the activations, of the weight."""

    def rounded(seed: int, rows: int) -> tuple[Tensor, Tensor]:
        made = rotate_quantize(place.normal(seed, rows, d_in), None, None, container="int8", backend="torch")
        return made.codes, made.scale

    return rounded(seed, tokens), rounded(seed + 1, d_out)
