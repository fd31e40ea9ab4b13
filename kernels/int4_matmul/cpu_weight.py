"""int4_matmul of one weight on a CPU: packed rows for a few tokens, int8 laid out for the matrix units for more."""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..coded import Coded
from ..compiled import address, compiles, in_parts
from ..schemes import Scheme
from .planes import int8_planes

log = logging.getLogger(__name__)

# Up to these the compiled product of packed rows reads a quarter of bfloat16's bytes and needs no second copy. At 8
# tokens both take as long (0.05 ms for 576 x 576, 0.46 and 0.31 ms for 2048 x 2048), at 16 it takes 1.2 to 2.7 times as
# long.
FEW_TOKENS = 8
# Bytes of weights a thread should have. Handing a part to another thread costs 30 us, in which it reads 256 KiB, and in
# a model more, since torch's own threads still wait for work then: SmolLM2 decodes a token in 14.5 ms, with 2^18 in 17.
_PART = 2**19
# Float32 sums at a time, and at least so many tokens, since the matrix units take the weights once for each block. 1024
# tokens at once take 1.6 ms for 1536 x 576, and 2.1 in blocks of 256; for 8192 x 2048 50 ms, and 43 in blocks.
_SUMS, _LEAST_TOKENS = 2**21, 256
_PART_TOKENS = 64  # of the pass behind the product of many tokens


class CpuWeight:
    """A packed weight, prepared for products with the codes of bfloat16 or float32 activations on a CPU.

    y = s_t s_o (sum_k q_k (p_k - z_o) - z_t sum_k (p_k - z_o)) + bias, with the roundings of `int4_matmul`: without
    groups the same bits. Groups are added in float64 here.

    The codes are the caller's own. The first product of more than FEW_TOKENS tokens makes a second copy of them, one
    byte each; groups take `int4_matmul` there.

    Args:
        weight: as `int4_matmul` takes it, packed, with its sums; contiguous.
        scheme: of the weight.
        bias: (d_out,) or None.
    """

    def __init__(self, weight: Coded, scheme: Scheme, bias: Tensor | None) -> None:
        assert weight.sums is not None
        self._parts = (weight.codes, weight.scale, weight.zero, bias)
        self.codes, self.scheme = weight.codes, scheme
        self.d_out, self.row_bytes = weight.codes.shape
        self.groups = weight.scale.shape[1]
        self._level = -0.5 if scheme == "midrise" else 0.0
        kept = (weight.scale, weight.zero, weight.sums, bias)
        self._kept = [None if part is None else part.detach().to(torch.float32).contiguous() for part in kept]
        self._addresses = [address(part) for part in self._kept]
        self._prepacked: tuple[Tensor, Tensor, Tensor] | None = None

    def is_of(self, parts: tuple[Tensor | None, ...]) -> bool:
        """Whether codes, scale, zero and bias are those that this was made of."""
        return all(mine is other for mine, other in zip(self._parts, parts, strict=True))

    def takes(self, x: Coded, dtype: torch.dtype) -> bool:
        """Whether `product` computes this here."""
        if dtype not in (torch.bfloat16, torch.float32) or x.codes.dtype != torch.int8 or not compiles():
            return False
        return x.scale.numel() <= FEW_TOKENS or (self.groups == 1 and _has_onednn())

    def product(self, x: Coded, scheme: Scheme, dtype: torch.dtype) -> Tensor:
        """x W^T + bias, (..., d_out) of dtype; x in planes, int8 (..., 2, d_in / 2), contiguous, as are its scales."""
        from .numba_rows import rows

        tokens = x.scale.numel()
        y = torch.empty(*x.scale.shape[:-1], self.d_out, dtype=dtype)
        scale, zero, sums, bias = self._addresses
        of_x = address(x.codes), address(x.scale), address(x.zero), -0.5 if scheme == "midrise" else 0.0
        of_y = bias, dtype == torch.bfloat16, address(y)
        if tokens <= FEW_TOKENS:
            flip, offset = (0, 0) if self.scheme == "asymmetric" else (0x88, 8)
            sizes = tokens, self.groups, self.row_bytes, address(self.codes), flip, offset
            fixed = (*sizes, scale, zero, self._level, sums, *of_x, *of_y, self.d_out)
            in_parts(lambda first, last: rows(first, last, *fixed), self.d_out, 1 + _PART // self.row_bytes)
        else:
            rows_of_x = x.codes.view(tokens, -1)
            step = max(_LEAST_TOKENS, _SUMS // self.d_out)
            for start in range(0, tokens, step):
                part = self._many(rows_of_x[start : start + step])
                given = self.d_out, 2 * self.row_bytes, address(part), scale, zero, self._level, sums
                own = [at and at + start * size for at, size in zip(of_x[:3], (2 * self.row_bytes, 4, 4), strict=True)]
                target = address(y) + start * self.d_out * y.element_size()
                tail = *own, of_x[3], bias, of_y[1], target
                in_parts(partial(_finish, (*given, *tail)), len(part), _PART_TOKENS)
        return y

    def constants(self) -> tuple[list[int], float]:
        """What the compiled product of a few tokens reads besides them: integers and addresses, the level of zero."""
        scale, zero, sums, bias = self._addresses
        flip, offset = (0, 0) if self.scheme == "asymmetric" else (0x88, 8)
        sizes = [self.d_out, self.groups, self.row_bytes, address(self.codes), flip, offset]
        return [*sizes, scale, zero, sums, bias], self._level

    @property
    def splits(self) -> bool:
        """Whether a few tokens' product is shared out to several threads, where torch has them."""
        return self.codes.numel() >= 2 * _PART

    @property
    def prepacked_bytes(self) -> int:
        """Of the second copy; 0 before it is made."""
        return 0 if self._prepacked is None else self._prepacked[0].numel()

    def _many(self, codes: Tensor) -> Tensor:
        """Sums of int8 products, float32 (T, d_out), exact below 2^24."""
        if self._prepacked is None:
            levels = int8_planes(self.codes, self.scheme).flatten(1)
            packed = torch.ops.onednn.qlinear_prepack(levels, None)
            ones = torch.ones(self.d_out)
            self._prepacked = packed, ones, torch.zeros(self.d_out, dtype=torch.int32)
        packed, ones, zeros = self._prepacked
        # Codes + 128 as unsigned bytes: with VNNI and no AMX, oneDNN multiplies signed ones by its reference loop
        # (130 x 576 x 1,536 on an AMD EPYC: 2,134 ms, unsigned 0.3 ms). Without VNNI unsigned ones may saturate.
        zero = 0
        if _has_vnni():
            codes, zero = codes.view(torch.uint8) ^ 128, 128
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, zero, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return found


def _finish(fixed: tuple[Any, ...], first: int, last: int) -> None:
    from .numba_rows import finish

    finish(first, last, *fixed)


@cache
def _has_vnni() -> bool:
    """Whether the CPU adds products of bytes to 32 bits in one step."""
    asked = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(asked is not None and asked())


@cache
def _has_onednn() -> bool:
    """Whether torch has oneDNN's int8 linear; says so once where it has not."""
    found = torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")
    if not found:
        log.info("torch has no onednn.qlinear_pointwise: prompts on a CPU unpack their weights at every call")
    return found
