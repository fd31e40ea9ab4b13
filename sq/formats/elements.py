"""The levels that codes stand for, in units of a scale: integers of three schemes, and small floating-point numbers.

All tensors are float32. torch is imported when a method needs it, since labels are read before torch is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache
from math import floor, log2
from typing import TYPE_CHECKING, Literal, get_args

from sq.errors import QuantizationError
from sq.kernels.schemes import Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
GridName = Literal["symmetric", "asymmetric", "midrise", "full_range"]  # those that kernels know, and one more
FULL_RANGE: GridName = "full_range"
MIN_BITS, MAX_BITS = 2, 8

# The lowest clip factor that a search tries, by bits of integers: 4 bits are best between 0.6 and 0.9, as a peak of 3-4
# standard deviations meets an optimal range of 2.7. Measured against a search over 161 factors on Gaussian (256 to 4096
# features), Student t and Laplace tokens: at 4 bits 9 candidates are within 1.3% of its squared error (3% on the last).
_LOWEST_CLIP = {2: 0.3, 3: 0.45, 4: 0.6, 5: 0.7, 6: 0.8, 7: 0.9, 8: 0.95}


class Element(ABC):
    """The levels of a format; the methods below are all that the rest of the package knows of them.

    Attributes:
        bits: of a code.
    """

    bits: int

    @property
    def has_zero(self) -> bool:
        """Whether codes have a zero point."""
        return False

    @property
    def signed(self) -> bool:
        """Whether codes are two's complement integers, else unsigned ones."""
        return False

    @property
    def kernel_scheme(self) -> Scheme | None:
        """The grid of kernels/grid.py that scale and codes are made by; None for levels that kernels do not know."""
        return None

    @property
    @abstractmethod
    def lowest_clip(self) -> float:
        """The lowest factor on a range that a clip search tries."""

    @property
    @abstractmethod
    def top(self) -> float:
        """The largest level."""

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    @property
    def code_dtype(self) -> torch.dtype:
        """int8 for signed codes, uint8 for unsigned ones."""
        import torch

        return torch.int8 if self.signed else torch.uint8

    @property
    def fills_bytes(self) -> bool:
        """Whether every pattern of a packed byte is a code (or two), so that no code can be out of range."""
        return self.bits in (4, 8)

    @abstractmethod
    def span(
        self, low: Tensor, high: Tensor, clip: float | Tensor, *, include_zero: bool, power: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point of rows whose entries span [low, high], see `grid_from_range`.

        include_zero: see `Format`. power: the scale will be rounded down to a power of two.
        """

    @abstractmethod
    def codes_(self, v: Tensor, zero: Tensor | None) -> Tensor:
        """Integer-valued codes of v, entries in units of the scale, in place."""

    @abstractmethod
    def levels_(self, codes: Tensor, zero: Tensor | None) -> Tensor:
        """Levels of integer-valued codes in units of the scale, in place."""

    def nearest_(self, v: Tensor, zero: Tensor | None) -> Tensor:
        """The levels nearest to v, in place."""
        return self.levels_(self.codes_(v, zero), zero)

    def residual_(self, v: Tensor, zero: Tensor | None, scratch: Tensor) -> Tensor:
        """v minus its nearest level, in place; `scratch` is of v's shape and is overwritten."""
        return v.sub_(self.nearest_(scratch.copy_(v), zero))


@dataclass(frozen=True)
class Integers(Element):
    """2^bits evenly spaced levels; formulas and conventions: sq/kernels/grid.py.

        symmetric   q
        asymmetric  q - z, with a zero point z
        midrise     q + 1/2

    Raises:
        QuantizationError: bits other than 2 to 8, or another scheme.
    """

    bits: int
    scheme: Scheme = "symmetric"

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise QuantizationError(f"integers of {self.bits} bits; use {MIN_BITS} to {MAX_BITS}")
        if self.scheme not in SCHEMES:
            raise QuantizationError(f"scheme is {self.scheme!r}; use one of {', '.join(SCHEMES)}")

    @property
    def has_zero(self) -> bool:
        return self.scheme == "asymmetric"

    @property
    def grid(self) -> GridName:
        """What a config and a file call these levels."""
        return self.scheme

    @property
    def kernel_scheme(self) -> Scheme | None:
        return self.scheme

    @property
    def signed(self) -> bool:
        return self.scheme != "asymmetric"

    @property
    def lowest_clip(self) -> float:
        return _LOWEST_CLIP[self.bits]

    @property
    def top(self) -> float:
        if self.scheme == "symmetric":
            return float(2 ** (self.bits - 1) - 1)
        return float(2**self.bits - 1) / (2 if self.scheme == "midrise" else 1)

    def span(
        self, low: Tensor, high: Tensor, clip: float | Tensor, *, include_zero: bool, power: bool
    ) -> tuple[Tensor, Tensor | None]:
        from sq.kernels.grid import span

        return span(low, high, clip, self.bits, self.scheme, include_zero=include_zero)

    def codes_(self, v: Tensor, zero: Tensor | None) -> Tensor:
        from sq.kernels.grid import codes_

        return codes_(v, zero, self.bits, self.scheme)

    def levels_(self, codes: Tensor, zero: Tensor | None) -> Tensor:
        from sq.kernels.grid import levels_

        return levels_(codes, zero, self.scheme)

    def residual_(self, v: Tensor, zero: Tensor | None, scratch: Tensor) -> Tensor:
        """The difference of codes, one pass less than that of levels."""
        import torch

        low, high = self.code_range
        if self.scheme == "midrise":
            torch.floor(v, out=scratch).clamp_(low, high).add_(0.5)
        else:
            if zero is not None:
                v.add_(zero)
            torch.round(v, out=scratch).clamp_(low, high)
        return v.sub_(scratch)


@dataclass(frozen=True)
class FullRange(Integers):
    """Symmetric integers whose scale counts all 2^b codes:

        level q in -2^(b-1)..2^(b-1)-1,    s = clip max|x| / (2^(b-1) - 1/2)

    compressed-tensors and the engines that read it round activations so: at 4 bits max|x| / 7.5 in the place of
    max|x| / 7. An entry of -max|x| is a tie and goes to the even code -2^(b-1); one of max|x| is cut to 2^(b-1) - 1.
    """

    scheme: Scheme = field(default="symmetric", init=False)  # of the codes: kernels multiply them as symmetric ones

    @property
    def grid(self) -> GridName:
        return FULL_RANGE

    @property
    def kernel_scheme(self) -> Scheme | None:
        return None

    @property
    def top(self) -> float:
        return float(2**self.bits - 1) / 2

    def span(
        self, low: Tensor, high: Tensor, clip: float | Tensor, *, include_zero: bool, power: bool
    ) -> tuple[Tensor, Tensor | None]:
        """clip max|x| / (2^(b-1) - 1/2), 1 for a row of zeros."""
        import torch

        scale = torch.maximum(-low, high) * clip / self.top
        return torch.where(scale == 0, 1.0, scale), None


@dataclass(frozen=True)
class Floats(Element):
    """Floating-point numbers of a sign bit, exponent and mantissa, with subnormal numbers and without infinities.

    The code is the number's bit pattern. Rounding is to nearest, ties to the even mantissa, and saturates.

    Attributes:
        exponent_bits, mantissa_bits: of a code.
        bias: of the exponent.
        largest: the largest number; the pattern behind it may be NaN (E4M3).
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def lowest_clip(self) -> float:
        return 0.6 if self.bits <= 4 else 0.95  # 8-bit numbers have range to spare and gain nothing from a clip

    @property
    def top(self) -> float:
        return self.largest

    @property
    def fills_bytes(self) -> bool:
        return self.bits == 4  # E4M3 has patterns that are no number

    def span(
        self, low: Tensor, high: Tensor, clip: float | Tensor, *, include_zero: bool, power: bool
    ) -> tuple[Tensor, Tensor | None]:
        """clip max|x| / largest. A power of two: clip max|x| / p, to be rounded down (OCP MX v1.0, 6.3), p being the
        largest power of two among the numbers: 4 for E2M1, 256 for E4M3."""
        import torch

        scale = torch.maximum(-low, high) * clip / (2.0 ** floor(log2(self.largest)) if power else self.largest)
        return torch.where(scale == 0, 1.0, scale), None

    def nearest_(self, v: Tensor, zero: Tensor | None) -> Tensor:
        """Multiples of 2^(e - mantissa_bits), e the exponent of v or the smallest normal one."""
        step = self._step(v)
        return v.div_(step).round_().mul_(step).clamp_(-self.largest, self.largest)

    def codes_(self, v: Tensor, zero: Tensor | None) -> Tensor:
        import torch

        sign = torch.signbit(v)
        size = self.nearest_(v, zero).abs_()
        step = self._step(size)
        # e - e_min binades of 2^mantissa_bits codes each lie below; within its binade a number is size / step.
        binade = torch.log2(step) + self.mantissa_bits - (1 - self.bias)
        codes = binade.round_().mul_(2**self.mantissa_bits).add_(size / step)
        return v.copy_(codes.add_(sign.to(codes.dtype), alpha=2 ** (self.bits - 1)))

    def levels_(self, codes: Tensor, zero: Tensor | None) -> Tensor:
        import torch

        table = torch.tensor(self.values(), dtype=codes.dtype, device=codes.device)
        return codes.copy_(table[codes.to(torch.int64)])

    @cache  # noqa: B019  (frozen, and there are two of them)
    def values(self) -> tuple[float, ...]:
        """The number of each code; NaN for patterns behind the largest number."""
        found = []
        for code in range(2**self.bits):
            exponent, mantissa = divmod(code % 2 ** (self.bits - 1), 2**self.mantissa_bits)
            power = max(exponent, 1) - self.bias - self.mantissa_bits
            size = (mantissa + (2**self.mantissa_bits if exponent else 0)) * 2.0**power
            size = float("nan") if size > self.largest else size
            found.append(-size if code >= 2 ** (self.bits - 1) else size)
        return tuple(found)

    def _step(self, v: Tensor) -> Tensor:
        """Distance between neighbouring numbers around v: its power of two is read off its own float32 bits."""
        import torch

        power = (v.view(torch.int32) & 0x7F800000).view(torch.float32)
        return power.clamp_min_(2.0 ** (1 - self.bias)).mul_(2.0**-self.mantissa_bits)


E2M1 = Floats(2, 1, 1, 6.0)
E4M3 = Floats(4, 3, 7, 448.0)
