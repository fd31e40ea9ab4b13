"""GPTQ: rounding column by column, each column's error made up for by the columns not yet rounded.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2210.17323),
Algorithm 1, in the form of the peers (QuaRot fake_quant/gptq_utils.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.grid import UNQUANTIZED_BITS, Grid, code_dtype
from sq.formats.weight import QuantizedWeight, WeightQuantizer
from sq.quantize.rounders.hessian import inverse_factor


@torch.no_grad()
def gptq(
    w: Tensor,
    hessian: Tensor,
    quantizer: WeightQuantizer,
    *,
    block: int = 128,
    damping: float = 0.01,
    name: str = "",
    retries: int = 2,
    act_order: bool = False,
) -> QuantizedWeight:
    """Codes of w that nearly minimize tr((w - q) H (w - q)^T).

    With U upper triangular, U^T U = (H + damping * mean(diag H) * I)^-1, column j in turn is rounded to q_j and every
    later column k gets w_k -= (w_j - q_j) U_jk / U_jj. Columns within a block are updated at once, those behind it by
    one matrix product a block, so `block` changes the speed and not the result. Dead columns (H_jj = 0) get w_j = 0 and
    the mean of the live H_jj, where the peers put 1: that would set the damping by the number of dead columns when
    activations are small, and changes nothing else.

    Grids: per channel fixed once from the whole row (dead columns zeroed, clip search if the quantizer has it); with
    group_size at the start of each group from the updated weights. act_order rounds columns by falling H_jj; groups
    stay groups of neighbouring input features there, so their grids are all fixed from the original weights (static
    groups).

    Args:
        w: (d_out, d_in), any float dtype; computed in float32.
        hessian: (d_in, d_in), float32 or float64, symmetric, in the basis of w's input (conjugate_hessian for a
            transformed one).
        quantizer: grids, bits and groups; at 16 bits w is returned unchanged.
        block: columns a block; shrunk so that groups and blocks align.
        damping, retries: see inverse_factor.
        name: site or weight for messages, such as "layer 3 qkv".

    Raises:
        QuantizationError: NaN or inf in w or hessian, shapes that do not fit, a negative H_jj, or a Hessian that cannot
            be factored.
    """
    what = name or "gptq"
    _check(w, hessian, quantizer, block, damping, retries, what)
    if quantizer.bits == UNQUANTIZED_BITS:
        return quantizer.quantize(w)
    d_out, d_in = w.shape
    size = quantizer.group_size or d_in
    weight = w.to(torch.float32, copy=True)
    hessian, dead = hessian.clone(), hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0 if bool(dead.all()) else hessian.diagonal()[~dead].mean()
    weight[:, dead] = 0

    static = act_order or quantizer.group_size is None
    scale = torch.empty(d_out, d_in // size, device=w.device)
    zero = torch.empty_like(scale) if quantizer.scheme == "asymmetric" else None
    if static:
        scale, zero = quantizer.grid(weight)
    order = torch.arange(d_in, device=w.device)
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    factor = inverse_factor(hessian, damping, retries=retries, name=name)
    del hessian
    pivot = factor.diagonal()
    group_of = (order // size).tolist()
    columns = weight.T[order].contiguous()  # (d_in, d_out): one column of w is contiguous
    codes = torch.empty(d_in, d_out, dtype=code_dtype(quantizer.scheme), device=w.device)

    step = block if static else _aligned(block, size)
    for start in range(0, d_in, step):
        end = min(start + step, d_in)
        errors = torch.empty(end - start, d_out, device=w.device)
        for j in range(start, end):
            g = group_of[j]
            if not static and j % size == 0:
                fresh_scale, fresh_zero = quantizer.grid(columns[j : j + size].T)
                scale[:, g] = fresh_scale[:, 0]
                if zero is not None and fresh_zero is not None:
                    zero[:, g] = fresh_zero[:, 0]
            grid = Grid(quantizer.bits, quantizer.scheme, scale[:, g], None if zero is None else zero[:, g])
            q = grid.encode(columns[j])
            codes[j] = q.to(codes.dtype)
            error = torch.sub(columns[j], grid.decode_(q), out=errors[j - start]).div_(pivot[j])
            columns[j + 1 : end].addr_(factor[j, j + 1 : end], error, alpha=-1)
        columns[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    result = torch.empty_like(codes)
    result[order] = codes
    return QuantizedWeight(result.T.contiguous(), scale, zero, quantizer.bits, quantizer.scheme, quantizer.group_size)


def _aligned(block: int, size: int) -> int:
    """The block size at most `block` that is a multiple or, for groups wider than a block, a divisor of the group size.

    A group's grid is read when all columns before the group have been applied to all of it: the group starts a block,
    or lies within one.
    """
    if size <= block:
        return block - block % size
    return max(step for step in range(1, block + 1) if size % step == 0)


def _check(
    w: Tensor, hessian: Tensor, quantizer: WeightQuantizer, block: int, damping: float, retries: int, what: str
) -> None:
    try:
        quantizer.check(w)
    except QuantizationError as error:
        raise QuantizationError(f"{what}: {error}") from error
    if block < 1 or not damping >= 0 or retries < 0:
        raise QuantizationError(f"{what}: {block=}, {damping=}, {retries=}; use block >= 1, damping >= 0, retries >= 0")
    if hessian.shape != (w.shape[1], w.shape[1]):
        need = (w.shape[1], w.shape[1])
        raise QuantizationError(
            f"{what}: the Hessian has shape {tuple(hessian.shape)}; a weight {tuple(w.shape)} needs {need}"
        )
    if not torch.isfinite(hessian).all():
        raise QuantizationError(f"{what}: the Hessian holds NaN or inf; look for them in this site's activations")
    if (hessian.diagonal() < 0).any():
        raise QuantizationError(f"{what}: the Hessian has a negative diagonal entry; pass a second moment, x^T x")


@dataclass(frozen=True)
class Gptq:
    """GPTQ and its options.

    Raises:
        QuantizationError: an option outside its range.
    """

    quantizer: WeightQuantizer
    block: int = 128
    damping: float = 0.01
    act_order: bool = False
    sequential: bool = True

    def __post_init__(self) -> None:
        if self.block < 1 or not self.damping > 0:
            raise QuantizationError(f"block={self.block} (at least 1), damping={self.damping} (above 0)")
