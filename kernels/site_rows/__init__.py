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
        if x.numel() > FEW_TOKENS * self.n:
            return self._run(self._products(x, up), last=True)
        return self._run(x, up, first=True, middle=True, last=True)

    def transformed(self, x: Tensor, up: Tensor | None = None) -> Tensor:
        """f(x) T, bfloat16 (..., n)."""
        if x.numel() > FEW_TOKENS * self.n:
            return self._run(self._products(x, up), mixes=True).codes
        return self._run(x, up, first=True, middle=True, mixes=True).codes

    def constants(self) -> tuple[list[int], float, tuple[float, ...]]:
        """What the compiled pass of all steps reads besides the tokens: integers and addresses, eps, the grid."""
        diagonal, basis, change, blocks, r1 = (address(part) for part in self._kept)
        gain, eps = (0, 0.0) if self.norm is None else (address(self.norm.gain), self.norm.eps)
        shape = self._rank, basis, change, self.form.n1, blocks, self._block_step, r1
        return [self.n, gain, diagonal, *shape, int(self.asymmetric), self._grid[0]], eps, self._grid[1:]

    def _products(self, x: Tensor, up: Tensor | None) -> Tensor:
        """Everything in front of R1, products by torch."""
        form, n1 = self.form, self.form.n1
        if self.norm is not None or up is not None or form.diagonal is not None:
            x = self._run(x, up, first=True).codes
        rows = x.reshape(-1, self.n)
        if form.basis is not None and form.change is not None:
            rows = rows + (rows @ form.basis.T) @ form.change
        if form.blocks is not None and form.blocks.dim() == 2:
            rows = rows.reshape(-1, self.n // n1) @ form.blocks
        elif form.blocks is not None:
            rows = torch.bmm(rows.view(-1, n1, self.n // n1).transpose(0, 1), form.blocks).transpose(0, 1)
        return rows.reshape(x.shape)

    def _run(
        self,
        x: Tensor,
        up: Tensor | None = None,
        *,
        first: bool = False,
        middle: bool = False,
        mixes: bool = False,
        last: bool = False,
    ) -> Coded:
        """The compiled pass: `first` f and the diagonal, `middle` low rank and blocks, `last` R1 and the codes; with
        `mixes` or neither, values in their place."""
        from .numba_site import site

        diagonal, basis, change, blocks, r1 = self._kept
        gain, eps = (self.norm.gain, self.norm.eps) if first and self.norm is not None else (None, 0.0)
        rows = x.reshape(-1, self.n)
        gates = None if up is None else up.reshape(-1, self.n)
        shape, scale, zero = x.shape[:-1], None, None
        if last:
            out = torch.empty(*shape, 2, self.n // 2, dtype=torch.int8)
            scale = torch.empty(*shape, 1)
            zero = torch.empty(*shape, 1) if self.asymmetric else None
        else:
            out = torch.empty(x.shape, dtype=torch.bfloat16)
        arguments: tuple[Any, ...] = (
            self.n, address(rows), rows.stride(0), address(gates), 0 if gates is None else gates.stride(0),
            address(gain), eps, address(diagonal) if first else 0, self._rank if middle else 0, address(basis),
            address(change), self.form.n1, address(blocks) if middle else 0, self._block_step,
            address(r1) if last or mixes else 0, 0 if last else address(out), *self._grid,
            address(out) if last else 0, address(scale), address(zero),
        )  # fmt: skip
        in_parts(lambda start, stop: site(start, stop, *arguments), len(rows), _PART_TOKENS)
        return Coded(out, scale, zero)  # type: ignore[arg-type]


def runs(x: Tensor, up: Tensor | None) -> bool:
    """Whether these activations (..., n) are such as `SiteRows` takes."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.stride(-1) != 1 or not compiles():
        return False
    return up is None or (up.dtype == x.dtype and up.stride(-1) == 1)
