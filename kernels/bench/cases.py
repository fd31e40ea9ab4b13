"""What is timed of our own: operands, call, bytes and operations of each kernel; and the memory of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..block_product import block_product
from ..coded import Coded
from ..fourth_moment import turn_pairs
from ..hadamard import hadamard
from ..int4_matmul import Form, int4_matmul
from ..kv4_attention import kv4_append, kv4_attention, kv4_cache, kv4_partials, kv4_rope_append
from ..kv4_attention.partials import split_count
from ..rotate_quantize import Container, Norm, Residual, rotate_quantize
from ..rotate_quantize.reference import contain
from .case import Case, Place
from .shapes import Model
from .yardsticks import block_operands, factors, int4_operands, new_tokens, rope_append_size

_WRITTEN = 512  # positions at a time when the cache is filled: bounds the bfloat16 keys that are alive


def rotation(
    tokens: int,
    n1: int,
    n2: int,
    *,
    container: Container = "int4",
    norm: bool = False,
    swiglu: bool = False,
    residual: bool = False,
) -> Case:
    """Kronecker rotation, symmetric grid, codes: 2 n + n / 2 + 4 bytes a token.

    n / 2 more in int8, 2 n with SwiGLU, 4 n with a residual.
    """
    n = n1 * n2

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, n)
        up = place.normal(seed + 1, tokens, n) if swiglu else None
        r1, r2 = factors(place, seed, n1, n2)
        front = Norm(1e-5, 1 + place.normal(seed + 4, n) / 8) if norm else None
        added = Residual(place.normal(seed + 5, tokens, n), place.empty(tokens, n)) if residual else None
        out = _buffers(place, tokens, n, container)
        return lambda: rotate_quantize(
            x, r1, r2, norm=front, up=up, residual=added, container=container, out=out, backend=place.backend
        )

    with_ = "residual + " * residual + "RMSNorm + " * norm + "SwiGLU + " * swiglu
    size = tokens * (2 * n * (1 + swiglu + 2 * residual) + (n // 2 if container == "int4" else n) + 4)
    into = "" if container == "int4" else f" to {container}"
    return Case(f"{with_}rotate_quantize {n}{into} T={tokens}", make, size, 2 * tokens * n * (n1 + n2), tuned=True)


def block_hadamard(tokens: int, n: int, block: int) -> Case:
    """Blocks of a Hadamard matrix's size and quantizer; the matrix is random signs, which cost the same."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, n)
        signs = torch.sign(place.normal(seed + 1, block, block)) / block**0.5
        out = _buffers(place, tokens, n, "int4")
        return lambda: rotate_quantize(x, None, signs, out=out, backend=place.backend)

    size = tokens * (5 * n // 2 + 4)
    return Case(f"block-{block} Hadamard + quantize {n} T={tokens}", make, size, 2 * tokens * n * block, tuned=True)


def online_hadamard(tokens: int, n: int, order: int) -> Case:
    """The online transform alone, 4 n bytes a token; a base of order K is random signs, which cost the same."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, n)
        signs = torch.sign(place.normal(seed + 1, order, order)).float()  # as the kernel takes it
        out = torch.empty_like(x)
        return lambda: hadamard(x, signs, out=out, backend=place.backend)

    return Case(f"hadamard {n} T={tokens}", make, 4 * tokens * n, tuned=True)


def blocked(tokens: int, n1: int, n2: int, rank: int) -> Case:
    """A block of its own for each row, R1 across them, a low rank in front: 4 n bytes a token, and the factors once."""
    n = n1 * n2

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, n)
        blocks, first, low_rank = block_operands(place, seed, n1, n2, rank)
        out = torch.empty_like(x)
        return lambda: block_product(x, blocks, first, low_rank, out=out, backend=place.backend)

    size = 4 * tokens * n + 2 * (n * n2 + n1 * n1 + 2 * n * rank)
    flops = 2 * tokens * n * (n2 + n1 + 2 * rank)
    return Case(f"block_product {n1}x{n2} r={rank} T={tokens}", make, size, flops, tuned=True)


def fourth_moment(sets: int, m: int, tokens: int) -> Case:
    """A step of fourth-moment rotations: samples in float32 and R in float64, both read and written once."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        rows = place.normal(seed, sets, m, tokens).float()
        turned = torch.eye(m, dtype=torch.float64, device=place.device).repeat(sets, 1, 1)
        pairs = torch.arange(m // 2 * 2, device=place.device).view(2, -1)
        return lambda: turn_pairs(rows, turned, pairs, backend=place.backend)

    return Case(f"turn_pairs {sets}x{m} T={tokens}", make, sets * m * (8 * tokens + 16 * m))


def matmul(tokens: int, d_out: int, d_in: int, form: Form) -> Case:
    """Packed weights by symmetric codes: packed for decode, int8 planes for the other forms."""
    container: Container = "int4" if form == "decode" else "int8_planes"

    def make(place: Place, seed: int) -> Callable[[], Any]:
        (codes, scale), weight = int4_operands(place, seed, tokens, d_out, d_in)
        x = Coded(contain(codes, container).contiguous(), scale, None)
        w, y = _packed_weight(*weight), place.empty(tokens, d_out)
        return lambda: int4_matmul(x, w, out=y, form=form, backend=place.backend)

    read = tokens * (d_in // 2 if form == "decode" else d_in) + 4 * tokens
    size = d_out * d_in // 2 + 4 * d_out + read + 2 * tokens * d_out
    through = " by workspace" if form == "workspace" else ""
    return Case(f"int4_matmul {d_out}x{d_in} M={tokens}{through}", make, size, 2 * tokens * d_out * d_in, tuned=True)


def linear(tokens: int, d_out: int, n1: int, n2: int) -> Case:
    """rotate_quantize to int8 planes, then int4_matmul: a whole linear from bfloat16 to bfloat16."""
    d_in = n1 * n2

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, d_in)
        r1, r2 = factors(place, seed, n1, n2)
        _, weight = int4_operands(place, seed, 1, d_out, d_in)
        w, y = _packed_weight(*weight), place.empty(tokens, d_out)
        codes = _buffers(place, tokens, d_in, "int8_planes")

        def run() -> Tensor:
            rotate_quantize(x, r1, r2, container="int8_planes", out=codes, backend=place.backend)
            return int4_matmul(codes, w, out=y, form="prefill", backend=place.backend)

        return run

    size = tokens * (4 * d_in + 8) + d_out * d_in // 2 + 4 * d_out + 2 * tokens * d_out
    flops = 2 * tokens * d_in * (d_out + n1 + n2)
    return Case(f"linear {d_out}x{d_in} M={tokens}", make, size, flops, tuned=True)


def attention(batch: int, heads: int, kv_heads: int, head_dim: int, positions: int) -> Case:
    """One query token a row over a full cache of asymmetric grids: 2 H_kv (D / 2 + 5) bytes a position."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        cache = kv4_cache(batch, kv_heads, positions, head_dim, "asymmetric", place.device)
        for first in range(0, positions, _WRITTEN):
            shape = (batch, kv_heads, min(_WRITTEN, positions - first), head_dim)
            start = torch.full((batch,), first, device=place.device)
            keys, values = place.normal(seed + first, *shape), place.normal(seed + first + 1, *shape)
            kv4_append(cache, keys, values, start, backend=place.backend)
        q = place.normal(seed + positions, batch, heads, head_dim)
        lengths = torch.full((batch,), positions, device=place.device)
        y, partials = torch.empty_like(q), None
        if place.backend != "torch" and (splits := split_count(batch * kv_heads, positions, q.device)) > 1:
            partials = kv4_partials(q, splits)
        return lambda: kv4_attention(q, cache, lengths, out=y, partials=partials, backend=place.backend)

    size = 2 * batch * kv_heads * positions * (head_dim // 2 + 5) + 4 * batch * heads * head_dim
    return Case(f"kv4_attention {heads}/{kv_heads}x{head_dim} B={batch} S={positions}", make, size, tuned=True)


def rope_append(batch: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    """RoPE of a new token's queries and keys and its append to an asymmetric cache."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        cache, q, k, v, cos, sin, positions = new_tokens(place, seed, batch, heads, kv_heads, head_dim)
        y = torch.empty_like(q)
        return lambda: kv4_rope_append(cache, q, k, v, cos, sin, positions, out=y, backend=place.backend)

    size = rope_append_size(batch, heads, kv_heads, head_dim)
    return Case(f"kv4_rope_append {heads}/{kv_heads}x{head_dim} B={batch}", make, size)


def memory(model: Model, batch: int, positions: int, packed: bool) -> Case:
    """Bytes of a model and its cache: the linears in 4 bits with a float32 scale a channel, or all in bfloat16.

    Embedding, head and norms are bfloat16 in both. The bytes are counted, so the case cannot be made.
    """

    def make(place: Place, seed: int) -> Callable[[], Any]:
        raise RuntimeError("rows of kind 'memory' are counted, not timed")

    sizes = model.linears().values()
    rest = 2 * (2 * model.vocabulary * model.hidden + (2 * model.layers + 1) * model.hidden)
    if packed:
        cache = kv4_cache(batch, model.kv_heads, positions, model.head_dim, "asymmetric", "meta")
        layer = sum(d_out * d_in // 2 + 4 * d_out for d_out, d_in in sizes)
        layer += sum(t.nbytes for side in (cache.keys, cache.values) for t in side if t is not None)
    else:
        values = batch * model.kv_heads * positions * model.head_dim
        layer = sum(2 * d_out * d_in for d_out, d_in in sizes) + 2 * 2 * values
    kind = "W4A4KV4" if packed else "bf16"
    return Case(f"{kind} {model.name} B={batch} S={positions}", make, rest + model.layers * layer)


def _buffers(place: Place, tokens: int, n: int, container: Container) -> Coded:
    """For symmetric codes."""
    shape = (tokens, n // 2) if container == "int4" else (tokens, 2, n // 2)
    codes = place.empty(*shape, dtype=torch.uint8 if container == "int4" else torch.int8)
    return Coded(codes, place.empty(tokens, 1, dtype=torch.float32), None)


def _packed_weight(codes: Tensor, scale: Tensor) -> Coded:
    return Coded(contain(codes, "int4"), scale)
