"""Every row of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch

from . import yardsticks
from .case import Row
from .cases import attention, matmul, rotation
from .shapes import Shapes


def suite(shapes: Shapes, pattern: str | None = None) -> list[Row]:
    """The yardsticks' own rates, then the rows of each kernel.

    Args:
        pattern: keep rows whose name `matches` it.
    """
    rows = [*_rates(shapes), *rotation.rows(shapes), *matmul.rows(shapes), *attention.rows(shapes)]
    return [row for row in rows if matches(row.name, pattern)]


def matches(name: str, pattern: str | None) -> bool:
    """Whether a name holds this text, or matches it where it has wildcards (*, ?), no matter the case; None: any."""
    if pattern is None:
        return True
    wanted = pattern.lower() if any(c in pattern for c in "*?") else f"*{pattern.lower()}*"
    return fnmatch(name.lower(), wanted)


def _rates(shapes: Shapes) -> Iterator[Row]:
    size = (shapes.square,) * 3
    square = f"{shapes.square}^3"
    yield Row("copy", yardsticks.copy(shapes.copied), "rate")
    yield Row(f"bf16 matmul {square}", yardsticks.bf16_matmul(*size), "rate")
    yield Row(f"_int_mm {square}", yardsticks.int_mm(*size), "rate")
    yield Row(f"fp8 matmul {square}", yardsticks.fp8_matmul(*size), "rate")
