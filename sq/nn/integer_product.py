"""Products of integer activations and integer weights: int32 sums, scaled once."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.formats.elements import Integers
from sq.formats.format import Format
from sq.formats.qtensor import QTensor


def is_integer(format: Format) -> bool:
    """Whether `integer_linear` takes a format: integers without a second scale."""
    return isinstance(format.element, Integers) and not format.second


def integer_linear(x: QTensor, weight: QTensor) -> Tensor:
    """x W^T from integers, (..., d_out) float32, with codes q and p of activations and weights, zero points z and y:

        s_t s_c (sum q p - z_t sum p - y_c sum q + n z_t y_c),    summed over groups where there are any.

    The zero point of mid-rise codes is -1/2. The sums are exact int32 (127 * 128 * n < 2^31 for n < 132,000). One of
    the two numbers of groups must be a multiple of the other.
    """
    codes, zero = _signed(x.codes.reshape(-1, x.codes.shape[-1]), _zeros(x))
    scale, zero = x.scale.reshape(-1, x.scale.shape[-1]), zero.reshape(-1, x.scale.shape[-1])
    other, other_zero = _signed(weight.codes, _zeros(weight))
    n, groups, other_groups = codes.shape[1], scale.shape[1], weight.scale.shape[1]
    steps = max(groups, other_groups)
    total = torch.zeros(codes.shape[0], other.shape[0], device=codes.device)
    for step in range(steps):
        part = slice(step * n // steps, (step + 1) * n // steps)
        q, p = codes[:, part], other[:, part]
        s, z = (value[:, step * groups // steps, None] for value in (scale, zero))  # (T, 1)
        r, y = (value[:, step * other_groups // steps] for value in (weight.scale, other_zero))  # (d_out,)
        sums = torch._int_mm(q.contiguous(), p.T.contiguous()).float()  # (T, d_out)
        if bool((z != 0).any()):
            sums -= z * p.sum(1, dtype=torch.int32)
        if bool((y != 0).any()):
            sums -= y * q.sum(1, dtype=torch.int32)[:, None]
            sums += q.shape[1] * z * y
        total += sums * s * r
    return total.reshape(*x.codes.shape[:-1], -1)


def _zeros(x: QTensor) -> Tensor:
    if x.zero is not None:
        return x.zero
    return torch.full_like(x.scale, -0.5 if x.format.scheme == "midrise" else 0.0)


def _signed(codes: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Codes as int8 and their zero points: unsigned 8-bit codes move down by 128 with them."""
    if codes.dtype != torch.uint8:
        return codes, zero
    if bool((codes > 127).any()):
        return (codes.to(torch.int16) - 128).to(torch.int8), zero - 128
    return codes.to(torch.int8), zero
