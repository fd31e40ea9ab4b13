"""How a scale is stored: float32, float16, E8M0 (a power of two) or E4M3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sq.formats.elements import E4M3

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ScaleType:
    """A way to store positive scales.

    Attributes:
        name: "float32", "float16", "e8m0" or "e4m3".
        counted: bits that a scale counts in sizes. A float32 scale counts as the 16 bits that it is deployed in.
        smallest, largest: positive range.
        up_from: of powers of two: a scale is rounded up where it is at least so many times the power below it, else
            down; 2 never rounds up.
    """

    name: str
    counted: int
    smallest: float
    largest: float
    up_from: float = 2.0

    @property
    def is_power(self) -> bool:
        """Whether scales are powers of two."""
        return self.name == "e8m0"

    @property
    def dtype(self) -> torch.dtype:
        """Of stored scales."""
        import torch

        return {"float32": torch.float32, "float16": torch.float16}.get(self.name, torch.uint8)

    def round(self, scale: Tensor) -> Tensor:
        """Positive float32 scales as they are stored, float32; NaN and inf stay as they are."""
        import torch

        if self.name == "float32":
            return scale
        finite = torch.isfinite(scale)
        bounded = scale.clamp(self.smallest, self.largest)
        if self.name == "float16":
            rounded = bounded.to(torch.float16).to(torch.float32)
        elif self.is_power:  # what is added to the mantissa carries into the exponent from up_from on
            carry = int((2 - self.up_from) * 2**23)
            rounded = ((bounded.contiguous().view(torch.int32) + carry) & 0x7F800000).view(torch.float32)
        else:
            rounded = E4M3.nearest_(bounded.clone(), None)
        return torch.where(finite, rounded, scale)

    def store(self, scale: Tensor) -> Tensor:
        """Rounded scales in their own bytes: float32, float16, or uint8 bit patterns."""
        import torch

        if self.name == "float32":
            return scale
        if self.name == "float16":
            return scale.to(torch.float16)
        if self.is_power:
            return (scale.contiguous().view(torch.int32) >> 23).to(torch.uint8)
        return E4M3.codes_(scale.clone(), None).to(torch.uint8)

    def load(self, stored: Tensor) -> Tensor:
        """float32 scales from what `store` made."""
        import torch

        if self.is_power:
            return (stored.to(torch.int32) << 23).view(torch.float32)
        if self.name == "e4m3":
            return E4M3.levels_(stored.to(torch.float32), None)
        return stored.to(torch.float32)


FLOAT32_SCALE = ScaleType("float32", 16, 0.0, float("inf"))
FLOAT16_SCALE = ScaleType("float16", 16, 2.0**-24, 65504.0)
E8M0_SCALE = ScaleType("e8m0", 8, 2.0**-126, 2.0**127)  # 2^-127 exists too; it would be subnormal in float32
# The rule of compressed-tensors and vLLM: a group's largest entry, in units of a power of two, is rounded to two bits.
E8M0_UP_SCALE = ScaleType("e8m0", 8, 2.0**-126, 2.0**127, up_from=1.75)
E4M3_SCALE = ScaleType("e4m3", 8, 2.0**-9, 448.0)
