"""Integer grids: where the 2^b levels of a row lie, and rounding to them.

For b bits, per row (a token, an output channel or a group of either), with clip in (0, 1]:

    scheme      codes q               value of a code     scale s                       zero z
    symmetric   -2^(b-1)..2^(b-1)-1   q s                 clip max|x| / (2^(b-1) - 1)   none
    asymmetric  0..2^b-1              (q - z) s           clip (high - low) / (2^b - 1) round(-clip low / s)
    midrise     -2^(b-1)..2^(b-1)-1   (2q + 1) s / 2      2 clip max|x| / (2^b - 1)     none

Symmetric and asymmetric follow the peers (QuaRot fake_quant/quant_utils.py, FlatQuant flatquant/quant_utils.py): the
symmetric absmax grid leaves code -2^(b-1) unused unless it clips, and [low, high] is widened to hold 0. The mid-rise
grid uses all 2^b levels, symmetric about 0, without a zero point; 0 itself is not a level.

Rounding is to nearest. Ties go to the even integer of x / s for symmetric and asymmetric (torch.round) and upward for
mid-rise, whose cells are [q s, (q + 1) s): floor is exact there, where round(x / s - 1/2) loses the sign of a tiny x.
So q(-x) = -q(x) on the mid-rise grid except where x is an exact multiple of s.

Rows without spread. All-zero: scale 1 (symmetric), range [-1, 1] (asymmetric), scale 2^-100 (mid-rise: its levels are
not 0, so they are made too small to matter; in float16 the scale becomes 0). A constant row whose range need not hold 0
gets it held after all.

NaN and inf are not hidden: the scale of such a row is NaN or inf, and every value decoded with it is NaN or inf. The
integer codes of such a row mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sq.errors import QuantizationError

Scheme = Literal["symmetric", "asymmetric", "midrise"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
MIN_BITS, MAX_BITS = 2, 8
UNQUANTIZED_BITS = 16

_MIDRISE_ZERO_ROW_SCALE = 2.0**-100


def check_bits(bits: int, scheme: str) -> None:
    """Raise QuantizationError unless bits is 2..8 or 16 (no quantization) and scheme is one of SCHEMES."""
    if bits != UNQUANTIZED_BITS and not MIN_BITS <= bits <= MAX_BITS:
        raise QuantizationError(
            f"bits is {bits}; use {MIN_BITS}..{MAX_BITS}, or {UNQUANTIZED_BITS} for no quantization"
        )
    if scheme not in SCHEMES:
        raise QuantizationError(f"scheme is {scheme!r}; use one of {', '.join(SCHEMES)}")


def code_range(bits: int, scheme: Scheme) -> tuple[int, int]:
    """Smallest and largest integer code."""
    if scheme == "asymmetric":
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def code_dtype(scheme: Scheme) -> torch.dtype:
    """uint8 for asymmetric codes, int8 for the signed ones."""
    return torch.uint8 if scheme == "asymmetric" else torch.int8


@dataclass(frozen=True)
class Grid:
    """The levels of one scheme; scale and zero broadcast against what is rounded.

    Attributes:
        bits: 2..8.
        scheme: one of SCHEMES.
        scale: float32, positive (NaN or inf for rows that hold NaN or inf).
        zero: integer-valued float32 of scale's shape for asymmetric, else None.
    """

    bits: int
    scheme: Scheme
    scale: Tensor
    zero: Tensor | None

    def encode(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Integer-valued float32 codes of float32 x, written to out if given."""
        low, high = code_range(self.bits, self.scheme)
        codes = torch.div(x, self.scale, out=out)
        if self.scheme == "midrise":
            return codes.floor_().clamp_(low, high)
        codes.round_()
        if self.zero is not None:
            codes.add_(self.zero)
        return codes.clamp_(low, high)

    def decode_(self, codes: Tensor) -> Tensor:
        """Values of float32 codes, in place."""
        if self.zero is not None:
            codes.sub_(self.zero)
        elif self.scheme == "midrise":
            codes.add_(0.5)
        return codes.mul_(self.scale)

    def fake(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x rounded to the grid, float32; out may be x itself."""
        return self.decode_(self.encode(x, out))

    def residual(self, x: Tensor, nearest: Tensor, out: Tensor) -> Tensor:
        """(x - its level) / scale, written to out; nearest is scratch. All three float32 and of x's shape."""
        low, high = code_range(self.bits, self.scheme)
        torch.div(x, self.scale, out=out)
        if self.scheme == "midrise":
            torch.floor(out, out=nearest).clamp_(low, high).add_(0.5)
        else:
            if self.zero is not None:
                out.add_(self.zero)
            torch.round(out, out=nearest).clamp_(low, high)
        return out.sub_(nearest)


def row_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest entry along the last axis (..., 1); NaN if the row holds one."""
    return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)


def grid_from_range(
    low: Tensor, high: Tensor, bits: int, scheme: Scheme, clip: float | Tensor = 1.0, *, include_zero: bool = True
) -> Grid:
    """Grid of rows whose entries span [low, high]; formulas in the module's docstring.

    Args:
        low, high: float32, any equal shape.
        clip: factor on the range, in (0, 1]; a tensor broadcasts against low.
        include_zero: widen an asymmetric range to hold 0. Peers do so per token and per channel, and not on their
            group-wise path.
    """
    if scheme != "asymmetric":
        steps = 2 ** (bits - 1) - 1 if scheme == "symmetric" else (2**bits - 1) / 2
        scale = torch.maximum(-low, high) * clip / steps
        empty = 1.0 if scheme == "symmetric" else _MIDRISE_ZERO_ROW_SCALE
        return Grid(bits, scheme, torch.where(scale == 0, empty, scale), None)
    if include_zero:
        low, high = low.clamp_max(0), high.clamp_min(0)
    levels = 2**bits - 1
    low, high = low * clip, high * clip
    flat = (high - low) / levels == 0
    low, high = torch.where(flat, low.clamp_max(0), low), torch.where(flat, high.clamp_min(0), high)
    flat = (high - low) / levels == 0
    low, high = torch.where(flat, -1.0, low), torch.where(flat, 1.0, high)
    scale = (high - low) / levels
    return Grid(bits, scheme, scale, torch.round(-low / scale))


def row_grid(x: Tensor, bits: int, scheme: Scheme, clip: float | Tensor = 1.0, *, include_zero: bool = True) -> Grid:
    """Grid of each row of float32 x (..., n): scale (..., 1), zero (..., 1) or None."""
    low, high = row_range(x)
    return grid_from_range(low, high, bits, scheme, clip, include_zero=include_zero)
