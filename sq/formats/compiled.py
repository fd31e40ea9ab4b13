"""The inner loop of the clip search compiled for the CPU: all candidates of a row in one read of it.

numba compiles it when it is first needed (0.8 s, kept in its cache for the next process). Where numba is missing the
search takes its steps in torch, with the same result, and says so once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sq.formats.elements import Element, Floats, Integers
from sq.kernels.compiled import has_numba, in_parts

EXPONENT = 0x7F800000  # bits of a float32's exponent
ONE_TWICE = 0x7F000000  # twice the bits of 1.0: less those of a power of two it leaves those of the inverse
FIFTHS = 2.4  # the norm of GPTQ's clip search: 12/5, a power that products and a fifth root make


def residual_sums(rows: Tensor, step: Tensor, zero: Tensor | None, element: Element) -> tuple[Tensor, Tensor] | None:
    """Sums of squares and of magnitudes of (x - its level) / step over each row, for each candidate step, float32.

    Args:
        rows: (R, n) float32.
        step, zero: (R, C), a grid for each candidate.

    Returns: two tensors (R, C); None for what is not compiled: other devices, elements of other kinds.
    """
    levels = _levels(element)
    if rows.device.type != "cpu" or levels is None or (compiled := _compiled()) is None:
        return None
    x, inverse = rows.contiguous().numpy(), step.reciprocal().contiguous().numpy()
    offset = (torch.zeros_like(step) if zero is None else zero.contiguous()).numpy()
    squares, magnitudes = torch.empty_like(step), torch.empty_like(step)

    def part(first: int, last: int) -> None:
        of_rows = (array[first:last] for array in (x, inverse, offset, squares.numpy(), magnitudes.numpy()))
        compiled(*of_rows, *levels)

    in_parts(part, len(x), 64)
    return squares, magnitudes


def power_sums(
    rows: Tensor, row: Tensor, step: Tensor, zero: Tensor | None, element: Element, norm: float
) -> Tensor | None:
    """Sums of |(x - its level) / step|^norm over rows, (P,) float32, for P pairs of a row and a step.

    Args:
        rows: (R, n) float32.
        row: (P,) int64, which row.
        step, zero: (P,), its grid.

    Returns: None for what is not compiled: norms other than 2.4, other devices, elements of other kinds.
    """
    levels = _levels(element)
    if norm != FIFTHS or rows.device.type != "cpu" or levels is None:
        return None
    if (compiled := _compiled_powers()) is None:
        return None
    sums = torch.empty_like(step)
    offset = torch.zeros_like(step) if zero is None else zero
    x = rows.contiguous().numpy()
    of_pairs = tuple(part.contiguous().numpy() for part in (row, step.reciprocal(), offset, sums))

    def part(first: int, last: int) -> None:
        compiled(x, *(array[first:last] for array in of_pairs), *levels)

    in_parts(part, len(row), 64)
    return sums


def _levels(element: Element) -> tuple[Any, ...] | None:
    """How the compiled loops round: kind, low, high, smallest, fine, 1 / fine; None for elements they do not know.

    Kind 0: integers between low and high. 1: the same plus 1/2. 2: floating-point numbers between low and high whose
    steps are `fine` times their power of two; `smallest` is the bit pattern of the least such power.
    """
    least = 1.0
    if isinstance(element, Integers):
        low, high = element.code_range
        kind, numbers = int(element.scheme == "midrise"), (float(low), float(high), 1.0, 1.0)
    elif isinstance(element, Floats):
        fine, least = 2.0**-element.mantissa_bits, 2.0 ** (1 - element.bias)
        kind, numbers = 2, (-element.largest, element.largest, fine, 1 / fine)
    else:
        return None
    bottom, top, fine, inverse_fine = torch.tensor(numbers, dtype=torch.float32).numpy()
    return kind, bottom, top, torch.tensor(least).view(torch.int32).numpy()[()], fine, inverse_fine


@cache
def _compiled() -> Callable[..., Any] | None:
    if not has_numba("clip searches of weights run in torch, some ten times as long"):
        return None
    import numba
    import numpy as np

    exponent, opposite = np.int32(EXPONENT), np.int32(ONE_TWICE)

    # Sums in any order, or the loop over a row would not be vectorized; nothing else is relaxed.
    @numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
    def sums(x, inverse, offset, squares, magnitudes, kind, low, high, smallest, fine, inverse_fine):  # type: ignore[no-untyped-def]
        half = np.float32(0.5)
        for r in range(x.shape[0]):
            row = x[r]
            for c in range(inverse.shape[1]):
                scale, zero = inverse[r, c], offset[r, c]
                square, magnitude = np.float32(0), np.float32(0)
                if kind == 2:
                    for j in range(row.shape[0]):
                        v = np.float32(row[j] * scale)
                        power = np.int32(max(np.int32(v.view(np.int32) & exponent), smallest))
                        step = power.view(np.float32) * fine
                        inverse_step = np.int32(opposite - power).view(np.float32) * inverse_fine
                        error = v - min(max(np.rint(v * inverse_step) * step, low), high)
                        square += error * error
                        magnitude += abs(error)
                elif kind == 1:
                    for j in range(row.shape[0]):
                        v = row[j] * scale
                        error = v - (min(max(np.floor(v), low), high) + half)
                        square += error * error
                        magnitude += abs(error)
                else:
                    for j in range(row.shape[0]):
                        v = row[j] * scale + zero
                        error = v - min(max(np.rint(v), low), high)
                        square += error * error
                        magnitude += abs(error)
                squares[r, c], magnitudes[r, c] = square, magnitude

    return sums


@cache
def _compiled_powers() -> Callable[..., Any] | None:
    if _compiled() is None:
        return None
    import numba
    import numpy as np

    # e^(12/5) = e^2 (e y^4)^2 with y = e^(-1/5) by Newton's iteration: its start is within 0.3%, three steps take it to
    # 2e-9. A quarter of the time of a power function, and within float32's last bits of it.
    start, fifth, six_fifths = np.int32(0x4C2B851E), np.float32(0.2), np.float32(1.2)
    tiny, half = np.float32(1e-30), np.float32(0.5)
    exponent, opposite = np.int32(EXPONENT), np.int32(ONE_TWICE)

    @numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
    def powers(x, row, inverse, offset, sums, kind, low, high, smallest, fine, inverse_fine):  # type: ignore[no-untyped-def]
        for p in range(row.shape[0]):
            own, scale, zero = x[row[p]], inverse[p], offset[p]
            total = np.float32(0)
            for j in range(own.shape[0]):
                v = np.float32(own[j] * scale + zero)
                if kind == 2:
                    power = np.int32(max(np.int32(v.view(np.int32) & exponent), smallest))
                    step = power.view(np.float32) * fine
                    inverse_step = np.int32(opposite - power).view(np.float32) * inverse_fine
                    level = min(max(np.rint(v * inverse_step) * step, low), high)
                elif kind == 1:
                    level = min(max(np.floor(v), low), high) + half
                else:
                    level = min(max(np.rint(v), low), high)
                error = abs(v - level) + tiny
                y = np.int32(start - np.float32(error).view(np.int32) // np.int32(5)).view(np.float32)
                for _ in range(3):
                    squared = y * y
                    y = y * (six_fifths - fifth * error * squared * squared * y)
                squared = y * y
                root = error * squared * squared
                total += error * error * root * root
            sums[p] = total

    return powers
