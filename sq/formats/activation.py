"""Dynamic quantization of activations, per token or per group of a token's features."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from sq.errors import QuantizationError
from sq.formats.clip_search import best_clip, row_chunks
from sq.formats.grid import (
    UNQUANTIZED_BITS,
    Grid,
    Scheme,
    check_bits,
    code_dtype,
    grid_from_range,
    row_grid,
    row_range,
)
from sq.formats.straight_through import straight_through

# The lowest clip factor tried, by bits; candidates are evenly spaced from 1 down to it. Measured against a search over
# 161 factors on 2,000 tokens each of Gaussian (256, 768, 4096 features), Student t with 6 degrees of freedom and
# Laplace entries (768): with 9 candidates the squared error is within 1.3% of the fine search on the Gaussian ones (3%
# on the others) for 4 bits. A peak of 3-4 standard deviations and the optimal range of 2.7 of a 4-bit grid put the best
# factor between 0.6 and 0.9; fewer bits want more clipping, 8 bits nearly none.
_LOWEST_CLIP = {2: 0.3, 3: 0.45, 4: 0.6, 5: 0.7, 6: 0.8, 7: 0.9, 8: 0.95}


Clip: TypeAlias = float | Literal["search"] | tuple[float, float]


def clip_candidates(bits: int, count: int) -> list[float]:
    """count clip factors, evenly spaced from 1 down to the lowest useful one for bits (0.6 at 4 bits)."""
    lowest = _LOWEST_CLIP[bits]
    return [1 - (1 - lowest) * i / (count - 1) for i in range(count)]


def shared_clip(x: Tensor, quantizer: ActivationQuantizer) -> float:
    """The candidate of least squared error over all tokens x (T, n), each token's error over its own mean square.

    One clip for a site costs nothing at run time, where `clip="search"` evaluates candidates for every token.
    """
    power = x.float().square().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    def error(clip: float) -> float:
        return float(((quantizer.with_clip(clip)(x).float() - x).square() / power).mean())

    return min(clip_candidates(quantizer.bits, quantizer.candidates), key=error)


class ActivationQuantizer(nn.Module):
    """Fake-quantizes activations x (..., n) with a grid for each token or each group of group_size features.

    Arithmetic is float32 for every input dtype; the output has the dtype of x. A token (group) that holds NaN or inf
    comes out all NaN or inf. The gradient passes straight through. Grids and rounding: sq/formats/grid.py.

    Args:
        bits: 2..8, or 16 for the identity.
        scheme: "symmetric" | "asymmetric" | "midrise".
        clip: factor on the range in (0, 1]; a pair of them, on its low and its high end; or "search": per token (group)
            the one of `candidates` factors with the least squared error.
        group_size: features that share a grid, a divisor of n; None for the whole token. As in the peers, a group's
            asymmetric range is not widened to hold 0, a token's is.
        candidates: number of clip factors searched, from 2.

    Raises:
        QuantizationError: an argument out of range, or group_size that does not divide n.
    """

    def __init__(
        self,
        bits: int,
        scheme: Scheme = "symmetric",
        clip: Clip = 1.0,
        group_size: int | None = None,
        candidates: int = 9,
    ) -> None:
        super().__init__()
        check_bits(bits, scheme)
        if isinstance(clip, str):
            if clip != "search":
                raise QuantizationError(f'clip is {clip!r}; use a number in (0, 1] or "search"')
        elif not all(0 < factor <= 1 for factor in (clip if isinstance(clip, tuple) else (clip,))):
            raise QuantizationError(f'clip is {clip}; use a number in (0, 1], a pair of them, or "search"')
        if group_size is not None and group_size < 1:
            raise QuantizationError(
                f"group_size is {group_size}; use a divisor of the features, or None for whole tokens"
            )
        if candidates < 2:
            raise QuantizationError(f"candidates is {candidates}; a clip search needs at least 2")
        self.bits = bits
        self.scheme: Scheme = scheme
        self.clip: Clip = clip
        self.group_size = group_size
        self.candidates = candidates

    def forward(self, x: Tensor) -> Tensor:
        """x rounded to its grids: shape and dtype of x."""
        if self.bits == UNQUANTIZED_BITS or x.numel() == 0:
            return x
        return straight_through(x, self._fake)

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Integer codes (..., n), scale (..., G) and zero (..., G) or None, with G groups a token.

        Codes are int8, uint8 for asymmetric; scale and zero are float32. Values: sq/formats/grid.py.

        Raises:
            QuantizationError: at 16 bits, where there are no codes.
        """
        if self.bits == UNQUANTIZED_BITS:
            raise QuantizationError("16-bit activations have no integer codes; forward returns them unchanged")
        rows = self._rows(x)
        codes = torch.empty(rows.shape, dtype=code_dtype(self.scheme), device=x.device)
        scale = torch.ones(rows.shape[0], 1, dtype=torch.float32, device=x.device)
        zero = torch.zeros_like(scale) if self.scheme == "asymmetric" else None
        for part in row_chunks(rows.shape[0], rows.shape[1], x.device) if rows.numel() else ():
            chunk = rows[part].float()
            grid = self._grid(chunk)
            codes[part] = grid.encode(chunk).to(codes.dtype)
            scale[part] = grid.scale
            if zero is not None and grid.zero is not None:
                zero[part] = grid.zero
        groups = 1 if self.group_size is None else x.shape[-1] // self.group_size
        shape = (*x.shape[:-1], groups)
        return codes.view(x.shape), scale.view(shape), None if zero is None else zero.view(shape)

    def with_clip(self, clip: Clip) -> ActivationQuantizer:
        """The same quantizer with another clip."""
        return ActivationQuantizer(self.bits, self.scheme, clip, self.group_size, self.candidates)

    def _fake(self, x: Tensor) -> Tensor:
        rows = self._rows(x)
        out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        for part in row_chunks(rows.shape[0], rows.shape[1], x.device):
            if x.dtype == torch.float32:  # straight into the result: no temporary of the chunk's size
                self._grid(rows[part]).fake(rows[part], out[part])
            else:
                chunk = rows[part].float()
                out[part] = self._grid(chunk).fake(chunk, chunk)
        return out.view(x.shape)

    def _rows(self, x: Tensor) -> Tensor:
        size = x.shape[-1] if self.group_size is None else self.group_size
        if size and x.shape[-1] % size:
            raise QuantizationError(
                f"group_size {size} does not divide the {x.shape[-1]} features; use a divisor, or None for whole tokens"
            )
        groups = x.shape[-1] // size if size else 1
        return x.reshape(x.shape[:-1].numel() * groups, size)

    def _grid(self, rows: Tensor) -> Grid:
        include_zero = self.group_size is None
        clip: float | Tensor
        if isinstance(self.clip, tuple):
            low, high = row_range(rows)
            low, high = self.clip[0] * low, self.clip[1] * high
            return grid_from_range(low, high, self.bits, self.scheme, include_zero=include_zero)
        if isinstance(self.clip, str):
            clips = clip_candidates(self.bits, self.candidates)
            clip = best_clip(rows, clips, self.bits, self.scheme, include_zero=include_zero)
        else:
            clip = self.clip
        return row_grid(rows, self.bits, self.scheme, clip, include_zero=include_zero)

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"bits={self.bits}, scheme={self.scheme}, clip={self.clip}, group_size={self.group_size}"
