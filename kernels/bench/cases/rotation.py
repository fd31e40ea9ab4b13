"""rotate_quantize and the online Hadamard: shares of copy bandwidth, eager torch, latency, what a norm adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...coded import Coded
from ...hadamard import hadamard
from ...rotate_quantize import Container, Norm, rotate_quantize
from ..case import Case, Place, Row
from ..shapes import Shapes
from ..yardsticks import copy, eager_rotate_quantize, factors


def rows(shapes: Shapes) -> Iterator[Row]:
    """All rows of both."""
    yield from _sweep(shapes)
    yield from _sides(shapes)
    yield from _hadamards(shapes)


def _sweep(shapes: Shapes) -> Iterator[Row]:
    for n in shapes.rotated:
        for tokens in shapes.tokens:
            target = f"rotate_quantize {n}" if tokens >= shapes.least_tokens else None
            case = rotation(tokens, *shapes.factors[n])
            yield Row(case.name, case, "bandwidth", copy(shapes.copied), target)
    for n in shapes.latencies:
        case = rotation(1, *shapes.factors[n])
        yield Row(f"{case.name}, latency", case, "latency", target=f"latency {n}")


def _sides(shapes: Shapes) -> Iterator[Row]:
    tokens = shapes.side_tokens
    for n in shapes.rotated:
        case = rotation(tokens, *shapes.factors[n])
        eager = eager_rotate_quantize(tokens, *shapes.factors[n])
        yield Row(f"{case.name} over eager", case, "speedup", eager, "rotate_quantize eager")
    for n in shapes.norms:
        plain, normed = (rotation(tokens, *shapes.factors[n], norm=norm) for norm in (False, True))
        yield Row(f"{normed.name}, extra time", normed, "extra", plain, "norm")
    for n in sorted({model.intermediate for model in shapes.models}):
        case = rotation(tokens, *shapes.factors[n], swiglu=True)
        yield Row(case.name, case, "bandwidth", copy(shapes.copied))
    for n in shapes.norms:
        case = rotation(tokens, *shapes.factors[n], container="int8_planes")
        yield Row(case.name, case, "bandwidth", copy(shapes.copied))
    for n in shapes.blocks:
        case = block_hadamard(tokens, n, shapes.block)
        yield Row(case.name, case, "bandwidth", copy(shapes.copied), "block hadamard")


def _hadamards(shapes: Shapes) -> Iterator[Row]:
    for n, order in shapes.hadamards.items():
        tokens = shapes.side_tokens * max(1, 4096 // n)  # a small n gets as many entries
        case = online_hadamard(tokens, n, order)
        yield Row(case.name, case, "bandwidth", copy(shapes.copied))


def rotation(
    tokens: int, n1: int, n2: int, *, container: Container = "int4", norm: bool = False, swiglu: bool = False
) -> Case:
    """Kronecker rotation, symmetric grid, codes: 2 n + n / 2 + 4 bytes a token, n / 2 more in int8, 2 n with SwiGLU."""
    n = n1 * n2

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, n)
        up = place.normal(seed + 1, tokens, n) if swiglu else None
        r1, r2 = factors(place, seed, n1, n2)
        front = Norm(1e-5, 1 + place.normal(seed + 4, n) / 8) if norm else None
        out = packed(place, tokens, n, container)
        return lambda: rotate_quantize(
            x, r1, r2, norm=front, up=up, container=container, out=out, backend=place.backend
        )

    with_ = "RMSNorm + " * norm + "SwiGLU + " * swiglu
    size = tokens * (2 * n * (1 + swiglu) + (n // 2 if container == "int4" else n) + 4)
    into = "" if container == "int4" else f" to {container}"
    return Case(f"{with_}rotate_quantize {n}{into} T={tokens}", make, size, 2 * tokens * n * (n1 + n2), tuned=True)


def block_hadamard(tokens: int, n: int, block: int) -> Case:
    """Blocks of a Hadamard matrix's size and quantizer; the matrix is random signs, which cost the same."""

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, n)
        signs = torch.sign(place.normal(seed + 1, block, block)) / block**0.5
        out = packed(place, tokens, n, "int4")
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


def packed(place: Place, tokens: int, n: int, container: Container) -> Coded:
    """Buffers for symmetric codes of T tokens."""
    shape = (tokens, n // 2) if container == "int4" else (tokens, 2, n // 2)
    codes = place.empty(*shape, dtype=torch.uint8 if container == "int4" else torch.int8)
    return Coded(codes, place.empty(tokens, 1, dtype=torch.float32), None)
