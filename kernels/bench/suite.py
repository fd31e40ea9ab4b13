"""Every row of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from . import yardsticks
from .case import Case, Row
from .cases import (
    attention,
    block_hadamard,
    blocked,
    fourth_moment,
    linear,
    matmul,
    memory,
    online_hadamard,
    rope_append,
    rotation,
)
from .shapes import Shapes

_LEAST_WEIGHT_BYTES = 33e6  # of packed weights whose reading is no longer a matter of ramp-up


def suite(shapes: Shapes, pattern: str | None = None) -> list[Row]:
    """The yardsticks' own rates, then the rows of each kernel; of these, the rows whose name `matches` the pattern."""
    rows = [*_rates(shapes), *_rotations(shapes), *_matmuls(shapes), *_attentions(shapes)]
    return [row for row in rows if matches(row.name, pattern)]


def matches(name: str, pattern: str | None) -> bool:
    """Whether a name holds this text, or matches it where it has wildcards (*, ?), no matter the case; None: any."""
    if pattern is None:
        return True
    wanted = pattern.lower() if any(c in pattern for c in "*?") else f"*{pattern.lower()}*"
    return fnmatch(name.lower(), wanted)


def _rates(shapes: Shapes) -> Iterator[Row]:
    yield Row("copy", yardsticks.copy(shapes.copied), "rate")
    products = (("bf16 matmul", yardsticks.bf16_matmul), ("_int_mm", yardsticks.int_mm))
    for name, product in (*products, ("fp8 matmul", yardsticks.fp8_matmul)):
        yield Row(f"{name} {shapes.square}^3", product(shapes.square, shapes.square, shapes.square), "rate")


def _rotations(shapes: Shapes) -> Iterator[Row]:
    """rotate_quantize, the online Hadamard, block_product, and the step that builds a rotation."""

    def rotated(n: int, tokens: int = shapes.side_tokens, **options: Any) -> Case:
        return rotation(tokens, *shapes.factors[n], **options)

    def over_copy(case: Case, target: str | None = None) -> Row:
        return Row(case.name, case, "bandwidth", yardsticks.copy(shapes.copied), target)

    for n in shapes.rotated:
        for tokens in shapes.tokens:
            yield over_copy(rotated(n, tokens), f"rotate_quantize {n}" if tokens >= shapes.least_tokens else None)
    for n in shapes.latencies:
        case = rotated(n, 1)
        yield Row(f"{case.name}, latency", case, "latency", target=f"latency {n}")
    for n in shapes.rotated:
        case, eager = rotated(n), yardsticks.eager_rotate_quantize(shapes.side_tokens, *shapes.factors[n])
        yield Row(f"{case.name} over eager", case, "speedup", eager, "rotate_quantize eager")
    for n in shapes.norms:
        case = rotated(n, norm=True)
        yield Row(f"{case.name}, extra time", case, "extra", rotated(n), "norm")
        yield over_copy(rotated(n, norm=True, residual=True))
    for n in sorted({model.intermediate for model in shapes.models}):
        yield over_copy(rotated(n, swiglu=True))
    for n in shapes.norms:
        yield over_copy(rotated(n, container="int8_planes"))
    for n in shapes.blocks:
        yield over_copy(block_hadamard(shapes.side_tokens, n, shapes.block), "block hadamard")
    for n, order in shapes.hadamards.items():  # a small n gets as many entries
        yield over_copy(online_hadamard(shapes.side_tokens * max(1, 4096 // n), n, order))
    for size in shapes.block_products:
        case, eager = blocked(shapes.side_tokens, *size), yardsticks.eager_block_product(shapes.side_tokens, *size)
        yield over_copy(case, "block_product low rank" if size[2] else "block_product")
        yield Row(f"{case.name} over eager", case, "speedup", eager, "block_product eager")
        single = blocked(1, *size)
        yield Row(f"{single.name}, latency", single, "latency")
    for sizes in shapes.fourth_moments:
        yield over_copy(fourth_moment(*sizes))


def _matmuls(shapes: Shapes) -> Iterator[Row]:
    """int4_matmul in both forms, and the linear around it; a shape that several models share is measured once."""
    layers: dict[tuple[int, int], tuple[str, str]] = {}
    for model in shapes.models:
        for site, size in model.linears().items():
            if site in shapes.sites:
                layers.setdefault(size, (model.name, site))
    for (d_out, d_in), (model_name, site) in layers.items():
        for tokens in shapes.decode:
            yield from _decode(f"{model_name} {site} {d_out}x{d_in} M={tokens}", site, (tokens, d_out, d_in), shapes)
        for tokens in shapes.prefill:
            yield from _prefill(f"{model_name} {site} {d_out}x{d_in} M={tokens}", (tokens, d_out, d_in), shapes)


def _decode(name: str, site: str, size: tuple[int, int, int], shapes: Shapes) -> Iterator[Row]:
    (tokens, d_out, d_in), case = size, matmul(*size, "decode")
    target = f"decode {tokens}" + (" o" if site == "o" else "")
    yield Row(f"{name} over bf16", case, "speedup", yardsticks.bf16_matmul(*size), target)
    if tokens == 1:
        heavy = "decode bandwidth" if d_out * d_in / 2 >= _LEAST_WEIGHT_BYTES else None
        yield Row(f"{name}, bandwidth", case, "bandwidth", yardsticks.copy(shapes.copied), heavy)


def _prefill(name: str, size: tuple[int, int, int], shapes: Shapes) -> Iterator[Row]:
    (tokens, d_out, d_in), case = size, matmul(*size, "prefill")
    whole = linear(tokens, d_out, *shapes.factors[d_in])
    yield Row(f"{name} over _int_mm", case, "speedup", yardsticks.int_mm(*size), "prefill int_mm")
    yield Row(f"{name} over bf16", case, "speedup", yardsticks.bf16_matmul(*size), "prefill bf16")
    wide = matmul(*size, "workspace")
    yield Row(f"{name} by workspace over bf16", wide, "speedup", yardsticks.bf16_matmul(*size), "prefill bf16")
    yield Row(
        f"{name} over _int_mm + scaling", case, "speedup", yardsticks.int_mm_scaled(*size), "prefill int_mm scaled"
    )
    yield Row(f"{name} over fp8", case, "speedup", yardsticks.fp8_matmul(*size))
    yield Row(f"{name} with rotate_quantize over bf16", whole, "speedup", yardsticks.bf16_matmul(*size), "linear bf16")


def _attentions(shapes: Shapes) -> Iterator[Row]:
    """Attention of every model and the append in front of it, then its memory."""
    for model in shapes.models:
        for batch, positions in shapes.attention:
            size = (batch, model.heads, model.kv_heads, model.head_dim, positions)
            name = f"{model.name} attention B={batch} S={positions} over sdpa"
            yield Row(name, attention(*size), "speedup", yardsticks.sdpa(*size), "attention")
        for batch in shapes.decode:
            heads = (batch, model.heads, model.kv_heads, model.head_dim)
            name = f"{model.name} RoPE + append B={batch} over eager"
            yield Row(name, rope_append(*heads), "speedup", yardsticks.eager_rope_append(*heads))
    for model in shapes.models:
        for batch in shapes.memory_batches:
            ours, theirs = (memory(model, batch, shapes.memory_positions, packed) for packed in (True, False))
            name = f"{model.name} weights + KV B={batch} S={shapes.memory_positions}"
            yield Row(name, ours, "memory", theirs, "memory")
