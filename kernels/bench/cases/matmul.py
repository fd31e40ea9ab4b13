"""int4_matmul in both forms, and the linear that rotates and quantizes its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ...coded import Coded
from ...int4_matmul import Form, int4_matmul
from ...rotate_quantize import Container, rotate_quantize
from ...rotate_quantize.reference import contain
from ..case import Case, Place, Row
from ..shapes import Shapes
from ..yardsticks import bf16_matmul, copy, factors, fp8_matmul, int4_operands, int_mm, int_mm_scaled
from .rotation import packed

_LEAST_WEIGHT_BYTES = 33e6  # of packed weights whose reading is no longer a matter of ramp-up


def rows(shapes: Shapes) -> Iterator[Row]:
    """All rows; a shape that several models share is measured once."""
    layers: dict[tuple[int, int], tuple[str, str]] = {}
    for model in shapes.models:
        for site, size in model.linears().items():
            if site in shapes.sites:
                layers.setdefault(size, (model.name, site))
    for size, (model_name, site) in layers.items():
        for tokens in shapes.decode:
            yield from _decode(f"{model_name} {site}", site, tokens, *size, shapes)
        for tokens in shapes.prefill:
            yield from _prefill(f"{model_name} {site}", tokens, *size, shapes)


def _decode(layer: str, site: str, tokens: int, d_out: int, d_in: int, shapes: Shapes) -> Iterator[Row]:
    case = matmul(tokens, d_out, d_in, "decode")
    name = f"{layer} {d_out}x{d_in} M={tokens}"
    target = f"decode {tokens}" + (" o" if site == "o" else "")
    yield Row(f"{name} over bf16", case, "speedup", bf16_matmul(tokens, d_out, d_in), target)
    if tokens == 1:
        heavy = d_out * d_in / 2 >= _LEAST_WEIGHT_BYTES
        yield Row(f"{name}, bandwidth", case, "bandwidth", copy(shapes.copied), "decode bandwidth" if heavy else None)


def _prefill(layer: str, tokens: int, d_out: int, d_in: int, shapes: Shapes) -> Iterator[Row]:
    size = (tokens, d_out, d_in)
    case, name = matmul(*size, "prefill"), f"{layer} {d_out}x{d_in} M={tokens}"
    yield Row(f"{name} over _int_mm", case, "speedup", int_mm(*size), "prefill int_mm")
    yield Row(f"{name} over bf16", case, "speedup", bf16_matmul(*size), "prefill bf16")
    yield Row(f"{name} over _int_mm + scaling", case, "speedup", int_mm_scaled(*size), "prefill int_mm scaled")
    yield Row(f"{name} over fp8", case, "speedup", fp8_matmul(*size))
    whole = linear(tokens, d_out, *shapes.factors[d_in])
    yield Row(f"{name} with rotate_quantize over bf16", whole, "speedup", bf16_matmul(*size), "linear bf16")


def matmul(tokens: int, d_out: int, d_in: int, form: Form) -> Case:
    """Packed weights by symmetric codes: packed for decode, int8 planes for prefill."""
    container: Container = "int4" if form == "decode" else "int8_planes"

    def make(place: Place, seed: int) -> Callable[[], Any]:
        (codes, scale), weight = int4_operands(place, seed, tokens, d_out, d_in)
        x = Coded(contain(codes, container).contiguous(), scale, None)
        w, y = _packed_weight(*weight), place.empty(tokens, d_out)
        return lambda: int4_matmul(x, w, out=y, form=form, backend=place.backend)

    read = tokens * (d_in // 2 if form == "decode" else d_in) + 4 * tokens
    size = d_out * d_in // 2 + 4 * d_out + read + 2 * tokens * d_out
    return Case(f"int4_matmul {d_out}x{d_in} M={tokens}", make, size, 2 * tokens * d_out * d_in, tuned=True)


def linear(tokens: int, d_out: int, n1: int, n2: int) -> Case:
    """rotate_quantize to int8 planes, then int4_matmul: a whole linear from bfloat16 to bfloat16."""
    d_in = n1 * n2

    def make(place: Place, seed: int) -> Callable[[], Any]:
        x = place.normal(seed, tokens, d_in)
        r1, r2 = factors(place, seed, n1, n2)
        _, weight = int4_operands(place, seed, 1, d_out, d_in)
        w, y = _packed_weight(*weight), place.empty(tokens, d_out)
        codes = packed(place, tokens, d_in, "int8_planes")

        def run() -> Tensor:
            rotate_quantize(x, r1, r2, container="int8_planes", out=codes, backend=place.backend)
            return int4_matmul(codes, w, out=y, form="prefill", backend=place.backend)

        return run

    size = tokens * (4 * d_in + 8) + d_out * d_in // 2 + 4 * d_out + 2 * tokens * d_out
    flops = 2 * tokens * d_in * (d_out + n1 + n2)
    return Case(f"linear {d_out}x{d_in} M={tokens}", make, size, flops, tuned=True)


def _packed_weight(codes: Tensor, scale: Tensor) -> Coded:
    return Coded(contain(codes, "int4"), scale)
