"""Dynamic quantization of activations: each token, or each group of its features, gets its own scale when it comes."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from sq.errors import QuantizationError
from sq.formats.clip_search import codes_by_chunks, grid_by_chunks, row_chunks, searched_grid
from sq.formats.compiled_rows import round_rows, row_ends, takes_rows
from sq.formats.format import Format, integer
from sq.formats.grid import Grid, grid_from_range, row_range, second_scale
from sq.formats.qtensor import QTensor
from sq.formats.straight_through import straight_through

Clip: TypeAlias = float | Literal["search"] | tuple[float, float]


def clip_candidates(format: Format, count: int) -> list[float]:
    """count clip factors, evenly spaced from 1 down to the lowest useful one (0.6 for 4-bit integers)."""
    lowest = format.element.lowest_clip
    return [1 - (1 - lowest) * i / (count - 1) for i in range(count)]


def shared_clip(x: Tensor, quantizer: ActivationQuantizer) -> float:
    """The candidate of least squared error over all tokens x (T, n), each token's error over its own mean square."""
    power = x.float().square().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    def error(clip: float) -> float:
        return float(((quantizer.with_clip(clip)(x).float() - x).square() / power).mean())

    return min(clip_candidates(quantizer.format, quantizer.candidates), key=error)


class ActivationQuantizer(nn.Module):
    """Fake-quantizes activations x (..., n), each token or each group of its features with a scale of its own.

    Arithmetic is float32 for every input dtype; the output has the dtype of x. A token (group) that holds NaN or inf
    comes out all NaN or inf. The gradient passes straight through.

    Args:
        format: of the codes.
        clip: factor on the range in (0, 1]; a pair of them, on its low and its high end; or "search": per token (group)
            the one of `candidates` factors with the least squared error.
        candidates: number of clip factors searched, from 2.
        peak: largest magnitude on calibration tokens, which a format with a static second scale makes it of.

    Raises:
        QuantizationError: an argument out of range, a format with one scale for a whole tensor, and later a group that
            does not divide n, or a peak that is missing.
    """

    def __init__(self, format: Format, clip: Clip = 1.0, candidates: int = 9, peak: float | None = None) -> None:
        super().__init__()
        if format.tensor:
            reason = f"{format.name} has one scale for a whole tensor, so that a token would depend on its batch"
            raise QuantizationError(f"{reason}; activations take formats with a scale for each token or group")
        factors = clip if isinstance(clip, tuple) else (clip,)
        if clip != "search" and not all(not isinstance(factor, str) and 0 < factor <= 1 for factor in factors):
            raise QuantizationError(f'clip is {clip!r}; use a number in (0, 1], a pair of them, or "search"')
        if candidates < 2:
            raise QuantizationError(f"candidates is {candidates}; a clip search needs at least 2")
        self.format, self.clip, self.candidates, self.peak = format, clip, candidates, peak

    def forward(self, x: Tensor) -> Tensor:
        """x rounded to its levels: shape and dtype of x."""
        return x if x.numel() == 0 else straight_through(x, self._fake)

    @torch.no_grad()
    def encode(self, x: Tensor) -> QTensor:
        """Codes and scales of x (..., n), G groups a token."""
        rows, second = self._rows(x)
        grid = grid_by_chunks(rows, second, self.format, self._grid)
        codes = codes_by_chunks(rows, grid.step, grid.zero, self.format).view(x.shape)
        shape = (*x.shape[:-1], self.format.groups(x.shape[-1]))
        zero = None if grid.zero is None else grid.zero.view(shape)
        second = None if second is None else second.view(shape)[..., :1]
        return QTensor(self.format, codes, grid.scale.view(shape), zero, second)

    def with_clip(self, clip: Clip) -> ActivationQuantizer:
        """The same quantizer with another clip."""
        return ActivationQuantizer(self.format, clip, self.candidates, self.peak)

    def with_peak(self, peak: float | None) -> ActivationQuantizer:
        """The same quantizer with another peak."""
        return ActivationQuantizer(self.format, self.clip, self.candidates, peak)

    def with_group(self, group: int) -> ActivationQuantizer:
        """The same quantizer of integers with a scale for each `group` neighbours; QuantizationError for others."""
        if self.format.grid is None:
            raise QuantizationError(
                f"the format {self.format.name} has groups of its own; a group of {group} features needs integers"
            )
        return ActivationQuantizer(integer(self.format.bits, self.format.grid, group), self.clip, self.candidates)

    @property
    def clips(self) -> list[float]:
        """The clip factors that are tried; 1 where a pair stands for the two ends of the range."""
        if isinstance(self.clip, str):
            return clip_candidates(self.format, self.candidates)
        return [1.0 if isinstance(self.clip, tuple) else self.clip]

    def _fake(self, x: Tensor) -> Tensor:
        rows, second = self._rows(x)
        out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        if takes_rows(rows, self.format.element):
            if self._searches:
                grid = grid_by_chunks(rows, second, self.format, self._grid)
            else:
                grid = self._spanned(*row_ends(rows), second)
            round_rows(rows, grid, out)
            return out.view(x.shape)
        for part in row_chunks(rows.shape[0], rows.shape[1], x.device):
            chunk, own = rows[part].float(), None if second is None else second[part]
            if x.dtype == torch.float32:  # straight into the result: no temporary of the chunk's size
                self._grid(chunk, own).fake(chunk, out[part])
            else:
                out[part] = self._grid(chunk, own).fake(chunk, chunk)
        return out.view(x.shape)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of one scale each, and their second scale (rows, 1), which the groups of a token share."""
        groups = self.format.groups(x.shape[-1])
        rows = x.reshape(x.shape[:-1].numel() * groups, x.shape[-1] // groups)
        if not self.format.second or not x.numel():
            return rows, None
        second = second_scale(self._peaks(x), self.format)
        assert second is not None
        return rows, second.repeat_interleave(groups, dim=0)

    def _peaks(self, x: Tensor) -> Tensor:
        """The largest magnitude that the second scale of each token (T, 1) is made of."""
        if not self.format.static:
            return x.detach().abs().amax(-1).reshape(-1, 1)
        if self.peak is None:
            raise QuantizationError(
                f"{self.format.name} has a second scale from calibration tokens, which were not looked at here; "
                "methods that train take nvfp4"
            )
        return torch.full((x.shape[:-1].numel(), 1), self.peak, device=x.device)

    @property
    def _searches(self) -> bool:
        return len(self.clips) * len(self.format.spans) > 1

    def _grid(self, rows: Tensor, second: Tensor | None) -> Grid:
        if self._searches:
            return searched_grid(rows, self.format, self.clips, second=second)
        return self._spanned(*row_range(rows), second)

    def _spanned(self, low: Tensor, high: Tensor, second: Tensor | None) -> Grid:
        """The grid of rows with these ends, where no clip is searched."""
        if isinstance(self.clip, tuple):
            low, high = self.clip[0] * low, self.clip[1] * high
        return grid_from_range(low, high, self.format, self.clips[0] * self.format.spans[0], second=second)

    def extra_repr(self) -> str:
        scheme = "" if self.format.grid is None else f", scheme={self.format.grid}"
        return f"format={self.format.name}{scheme}, clip={self.clip}"
