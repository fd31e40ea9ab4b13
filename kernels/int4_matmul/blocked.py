"""int4_matmul in torch: integer products by torch._int_mm, a block of weights unpacked at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..coded import Coded
from ..schemes import Scheme
from .planes import levels_of

# Unpacked weights (bytes) and sums (entries) at a time. On the CPU they should stay in its caches; README.md says what
# was tried. On a GPU few launches matter more.
_CPU_BLOCK, _CPU_SUMS = 2**21, 2**18
_GPU_BLOCK, _GPU_SUMS = 2**26, 2**26
_FEW_TOKENS = 64  # up to these, and from 2 on, a CPU is up to 1.8 times as fast with the weights as the left operand


def int4_matmul_blocked(
    x: Coded, w: Coded, x_scheme: Scheme, w_scheme: Scheme, bias: Tensor | None, residual: Tensor | None, out: Tensor
) -> None:
    """int4_matmul of checked arguments, written to out (T, d_out); tokens are rows, int8 codes lie in planes."""
    cpu = out.device.type == "cpu"
    groups = w.scale.shape[1]
    w_zero = w.zero
    if w_scheme == "midrise":  # q + 1/2 as a zero of -1/2: sums over tokens for arithmetic on every weight
        w_scheme, w_zero = "symmetric", torch.full_like(w.scale, -0.5)
    levels, unit = levels_of(x.codes, x_scheme, groups)  # [T, G, 2, d_in / 2G]
    sums = None if w_zero is None else levels.sum((2, 3), dtype=torch.int32).float()  # [T, G]

    block, entries = (_CPU_BLOCK, _CPU_SUMS) if cpu else (_GPU_BLOCK, _GPU_SUMS)
    rows = max(64, block // (2 * w.codes.shape[-1]))
    if w.codes.dtype == torch.int8:  # nothing to unpack: as many as the sums allow
        rows = max(rows, entries // max(1, len(out)))
    rows = min(rows, len(w.codes))
    tokens = max(64, entries // rows)
    for first in range(0, len(w.codes), rows):
        o = slice(first, first + rows)
        weights, _ = levels_of(w.codes[o], w_scheme, groups)
        scale = w.scale[o].float()
        zero = None if w_zero is None else w_zero[o].float()
        for start in range(0, len(out), tokens):
            t = slice(start, start + tokens)
            y = _int_mm(levels[t, 0].flatten(1), weights[:, 0].flatten(1)).float()
            if groups > 1:
                y *= scale[:, 0]
            for g in range(1, groups):
                y.addcmul_(_int_mm(levels[t, g].flatten(1), weights[:, g].flatten(1)).float(), scale[:, g])
            if zero is not None and sums is not None:
                if groups == 1:
                    y.addcmul_(sums[t], zero[:, 0], value=-1)
                else:  # float64: settings that make float32 products cheaper and coarser do not apply
                    y -= (sums[t].double() @ (zero * scale).double().T).float()
            # the unit is a power of two: neither the division nor the product by it rounds
            if x.zero is not None and w.sums is not None:
                y.addcmul_(x.zero[t].float(), w.sums[o], value=-1 / unit)
            if groups == 1:
                y *= scale[:, 0]
            y *= x.scale[t].float() * unit
            if bias is not None:
                y += bias[o]
            if residual is not None:
                y += residual[t, o]
            out[t, o] = y


def _int_mm(x: Tensor, w: Tensor) -> Tensor:
    """x w^T of int8 (T, n) and (rows, n), int32."""
    if x.is_cuda:  # takes 17 rows or more, and multiples of 8
        (t, n), rows = x.shape, len(w)
        x, w = pad(x, (0, -n % 8, 0, max(0, 17 - t))), pad(w, (0, -n % 8, 0, -rows % 8))
        return torch._int_mm(x, w.T)[:t, :rows]
    if 1 < len(x) <= _FEW_TOKENS:
        return torch._int_mm(w, x.T).T
    return torch._int_mm(x, w.T)
