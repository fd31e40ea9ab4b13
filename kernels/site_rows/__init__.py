"""What stands in front of a packed linear on a CPU, in bfloat16: README.md."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..coded import Coded
from ..compiled import address, compiles, in_parts
from ..grid import code_range
from ..rotate_quantize import Norm
from ..schemes import Scheme
from .takes import RowForm, form_of, obstacle

__all__ = ["RowForm", "SiteRows", "form_of", "obstacle", "runs"]

# Up to these one pass takes all steps. From about 16 tokens on the matrix units make up for the passes between steps.
FEW_TOKENS = 8
# Entries that go from step to step at a time: in bfloat16 they and what becomes of them stay in a cache of 2 MB.
_CHUNK = 2**19
_PART_TOKENS = 16  # tokens a thread should have at least


class SiteRows:
    """Norm or gate, transform and codes of one site: z = f(x) T, codes of z, rounded to bfloat16 after every step.

    The roundings are those of the modules (`DeferredNorm`, `Transform`, `ActivationQuantizer`). Sums are float32 in
    another order, so that now and then an entry of z is the neighbouring bfloat16.

    Args:
        n: features of a token, even.
        norm: RMSNorm in front, its gain bfloat16; or None.
        form: of T, factors in bfloat16 (`form_of`).
        scheme, bits: of the codes, which fit int8.
        clip, ends: factors on the range, and on its low and its high end; as in `rotate_quantize`.
    """

    def __init__(
        self,
        n: int,
        norm: Norm | None,
        form: RowForm,
        scheme: Scheme,
        bits: int,
        clip: float = 1.0,
        ends: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        least, most = code_range(bits, scheme)
        steps = {"symmetric": most, "asymmetric": most, "midrise": (2**bits - 1) / 2}[scheme]
        order = ("symmetric", "asymmetric", "midrise").index(scheme)
        self.n, self.norm, self.form, self.asymmetric = n, norm, form, scheme == "asymmetric"
        self._kept = [None if part is None else part.contiguous() for part in form[:5]]
        self._grid: tuple[Any, ...] = (order, float(steps), clip, *ends, float(least), float(most))
        self._rank = 0 if form.basis is None else len(form.basis)
        self._block_step = 0 if form.blocks is None or form.blocks.dim() == 2 else form.blocks[0].numel()

    def codes(self, x: Tensor, up: Tensor | None = None) -> Coded:
        """Codes of f(x) T as planes, int8 (..., 2, n / 2), scale and zero float32 (..., 1).

        x and up are bfloat16 (..., n) on the CPU, rows contiguous.
        """
        shape = x.shape[:-1]
        out = torch.empty(*shape, 2, self.n // 2, dtype=torch.int8)
        scale = torch.empty(*shape, 1)
        zero = torch.empty(*shape, 1) if self.asymmetric else None
        self._fill(x, up, out, scale, zero)
        return Coded(out, scale, zero)

    def transformed(self, x: Tensor, up: Tensor | None = None) -> Tensor:
        """f(x) T, bfloat16 (..., n)."""
        out = torch.empty(x.shape, dtype=torch.bfloat16)
        self._fill(x, up, out, None, None)
        return out

    def _fill(self, x: Tensor, up: Tensor | None, out: Tensor, scale: Tensor | None, zero: Tensor | None) -> None:
        """Codes, or values where there is no scale."""
        x, up = x.reshape(-1, self.n), None if up is None else up.reshape(-1, self.n)
        codes = scale is not None
        targets = (0 if codes else address(out), address(out) if codes else 0, address(scale), address(zero))
        if len(x) <= FEW_TOKENS:
            self._run(x, up, *targets, first=True, middle=True)
            return
        step = max(FEW_TOKENS, _CHUNK // self.n)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            bytes_ = (2 * self.n, self.n, 4, 4)  # of a token in each target
            at = (target and target + start * size for target, size in zip(targets, bytes_, strict=True))
            self._run(self._products(x[part], None if up is None else up[part]), None, *at)

    def constants(self) -> tuple[list[int], float, tuple[float, ...]]:
        """What the compiled pass of all steps reads besides the tokens: integers and addresses, eps, the grid."""
        diagonal, basis, change, blocks, r1 = (address(part) for part in self._kept)
        gain, eps = (0, 0.0) if self.norm is None else (address(self.norm.gain), self.norm.eps)
        shape = self._rank, basis, change, self.form.n1, blocks, self._block_step, r1
        return [self.n, gain, diagonal, *shape, int(self.asymmetric), self._grid[0]], eps, self._grid[1:]

    def _products(self, x: Tensor, up: Tensor | None) -> Tensor:
        """f(x) T of x (T, n), products by torch: (T, n), or (n1, T, n2) as products of blocks leave it."""
        form, n1 = self.form, self.form.n1
        if self.norm is not None or up is not None or form.diagonal is not None:
            front = torch.empty(x.shape, dtype=torch.bfloat16)
            self._run(x, up, address(front), 0, 0, 0, first=True)
            x = front
        if form.basis is not None and form.change is not None:
            x = ((x @ form.basis.T) @ form.change).add_(x)
        if form.blocks is None and form.r1 is None:
            return x
        if form.blocks is not None and form.blocks.dim() == 3:
            pieces = torch.bmm(x.view(-1, n1, self.n // n1).transpose(0, 1), form.blocks)
        else:
            rows = x.view(-1, self.n // n1)
            pieces = (rows if form.blocks is None else rows @ form.blocks).view(-1, n1, self.n // n1).transpose(0, 1)
        if form.r1 is not None:
            pieces = (form.r1.T @ pieces.reshape(n1, -1)).view(n1, -1, self.n // n1)
        return pieces

    def _run(
        self, x: Tensor, up: Tensor | None, out: int, codes: int, scale: int, zero: int, *,
        first: bool = False, middle: bool = False,
    ) -> None:  # fmt: skip
        """The compiled pass over x (T, n) or (n1, T, n2), results to addresses: `first` f and the diagonal,
        `middle` low rank, blocks and R1, then values or codes."""
        from .numba_site import site

        _, basis, change, blocks, r1 = (address(part) if middle else 0 for part in self._kept)
        gain, eps = (address(self.norm.gain), self.norm.eps) if first and self.norm is not None else (0, 0.0)
        pieces, piece_stride = (1, 0) if x.dim() == 2 else (len(x), x.stride(0))
        arguments: tuple[Any, ...] = (
            self.n, address(x), x.stride(-2), pieces, piece_stride, address(up), 0 if up is None else up.stride(0),
            gain, eps, address(self._kept[0]) if first else 0, self._rank if middle else 0, basis, change,
            self.form.n1, blocks, self._block_step, r1, out, *self._grid, codes, scale, zero,
        )  # fmt: skip
        in_parts(lambda start, stop: site(start, stop, *arguments), x.shape[-2], _PART_TOKENS)


def runs(x: Tensor, up: Tensor | None) -> bool:
    """Whether these activations (..., n) are such as `SiteRows` takes."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.stride(-1) != 1 or not compiles():
        return False
    return up is None or (up.dtype == x.dtype and up.stride(-1) == 1)
