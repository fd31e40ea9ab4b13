"""One form for quantized numbers: codes, their scales and the format that says what they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.finite import all_finite
from sq.formats.format import Format
from sq.formats.grid import Grid
from sq.formats.packing import pack, packed_size, unpack


@dataclass(frozen=True)
class QTensor:
    """A quantized tensor (..., n): a weight (d_out, d_in), activations, or keys and values of some heads.

    It is made where numbers are rounded, is read by packed layers and is what a checkpoint file stores.

    Attributes:
        format: what codes and scales mean.
        codes: (..., n), int8 or uint8, a code an entry; packed: uint8 (..., bytes of a row), see sq/formats/packing.py.
        scale: (..., G), G groups a row, or (1, 1) for one scale a tensor; float32, packed: as the format stores scales.
        zero: integer-valued float32 of scale's shape where the format has zero points, else None.
        second: float32, () for a weight or (..., 1) for tokens, where the format has a second scale, else None.
        packed_features: n of packed codes; None where they are not packed.
    """

    format: Format
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    second: Tensor | None = None
    packed_features: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that the codes stand for."""
        return (*self.codes.shape[:-1], self.packed_features or self.codes.shape[-1])

    @property
    def is_packed(self) -> bool:
        """Whether codes and scales are in the form of a file."""
        return self.packed_features is not None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values that the codes stand for, (..., n), computed in float32."""
        plain = self.unpack()
        values, scale, zero, second = plain.codes.to(torch.float32), plain.scale, plain.zero, plain.second
        if self.format.tensor:
            return Grid(self.format, scale, zero, second).decode_(values).to(dtype)
        if second is not None and second.dim():
            second = second.unsqueeze(-1)
        grid = Grid(self.format, scale.unsqueeze(-1), None if zero is None else zero.unsqueeze(-1), second)
        grid.decode_(values.view(*scale.shape, values.shape[-1] // scale.shape[-1]))
        return values.to(dtype)

    def pack(self) -> QTensor:
        """The same with codes as bytes (two a byte up to 4 bits) and scales as the format stores them."""
        if self.packed_features is not None:
            return self
        codes = pack(self.codes, self.format.element.signed, self.format.bits)
        return replace(
            self, codes=codes, scale=self.format.scale.store(self.scale), packed_features=self.codes.shape[-1]
        )

    def unpack(self) -> QTensor:
        """The same with a code an entry and float32 scales."""
        if self.packed_features is None:
            return self
        codes = unpack(self.codes, self.packed_features, self.format.element.signed, self.format.bits)
        return replace(self, codes=codes, scale=self.format.scale.load(self.scale), packed_features=None)

    def nbytes(self) -> int:
        """Bytes when packed, by `Format.counted_bits`: of a weight, 16 bits for each scale that is float32."""
        *rows, n = self.shape
        return -(-self.format.counted_bits(prod(rows), n) // 8)

    def to(self, device: torch.device | str) -> QTensor:
        """The same on another device."""
        zero, second = (None if tensor is None else tensor.to(device) for tensor in (self.zero, self.second))
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device), zero=zero, second=second)

    def check(self, name: str) -> QTensor:
        """The tensor itself, if it is sound; `name` is for the message.

        Raises:
            QuantizationError: sizes that do not fit each other, codes out of range, scales that are NaN, infinite, zero
                or negative, zero points where the format has none, or the other way round.
        """
        problems = self._misfits() or self._bad_values()
        if problems:
            raise QuantizationError(f"{name} is no {self.format.name} tensor: {'; '.join(problems)}")
        return self

    def _misfits(self) -> list[str]:
        n, rows = self.shape[-1], self.codes.shape[:-1]
        bytes_, found = packed_size(n, self.format.bits), []
        if self.is_packed and (self.codes.dtype != torch.uint8 or self.codes.shape[-1] != bytes_):
            found.append(f"{n} packed codes are {bytes_} bytes of uint8, got {_words(self.codes)}")
        if self.format.group is not None and n % self.format.group:
            found.append(f"groups of {self.format.group} do not divide {n} features")
            return found
        expected = (1, 1) if self.format.tensor else (*rows, self.format.groups(n))
        if tuple(self.scale.shape) != expected:
            found.append(f"scale is {_words(self.scale)}, codes {_words(self.codes)} need {expected}")
        if (self.zero is not None) != self.format.element.has_zero:
            found.append(f"zero points are {'given' if self.zero is not None else 'missing'}")
        elif self.zero is not None and self.zero.shape != self.scale.shape:
            found.append(f"zero is {_words(self.zero)}, scale {_words(self.scale)}")
        if (self.second is not None) != self.format.second:
            found.append(f"the second scale is {'given' if self.second is not None else 'missing'}")
        return found

    def _bad_values(self) -> list[str]:
        found = []
        scales = self.format.scale.load(self.scale) if self.is_packed else self.scale
        for word, scale in (("scale", scales), ("second scale", self.second)):
            bad = 0 if scale is None else int((~(torch.isfinite(scale) & (scale > 0))).sum())
            if scale is not None and bad:
                found.append(f"{bad} of {scale.numel()} {word} values are NaN, infinite, zero or negative")
        if self.zero is not None and not all_finite(self.zero):
            found.append("zero points hold NaN or inf")
        if self.is_packed and self.format.element.fills_bytes:
            return found
        plain = self.unpack()
        low, high = self.format.element.code_range
        if plain.codes.numel():
            least, most = int(plain.codes.min()), int(plain.codes.max())
            if least < low or most > high:
                found.append(f"codes span {least}..{most}, the format has {low}..{high}")
        if not found and not all_finite(plain.dequantize()):
            found.append("some codes stand for no number")
        return found


def _words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
