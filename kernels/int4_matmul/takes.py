"""Which formats `int4_matmul` takes."""

from __future__ import annotations

from typing import Literal

import torch

from ..coded import HasCodes
from ..formats import Format, grid_obstacle
from .tiles import LARGEST_SUM

LARGEST_D_IN = LARGEST_SUM // 2**14 - 1  # even; sums of int8 products stay within int32


Form = Literal["auto", "prefill", "decode", "workspace"]


def workspace_obstacle(x: HasCodes, w: HasCodes) -> str | None:
    """Why the workspace form does not take these operands, or None: its sums are of bytes alone, in one row."""
    if x.codes.dtype == torch.uint8:
        return "activations are packed, and it takes those in int8"
    if w.zero is not None:
        return "weights have zeros"
    if w.scale.shape[1] > 1:
        return f"weights have {w.scale.shape[1]} groups a row"
    return None


def obstacle(x_format: Format, w_format: Format, d_in: int) -> str | None:
    """Why activations and a weight (d_out, d_in) of these formats cannot be multiplied, or None.

    Activations: a scale a token; up to 4 bits in any scheme, up to 8 in the symmetric one. Weights: up to 4 bits in any
    scheme; a scale an output feature, or one for each group of an even number of features.
    """
    for format in (x_format, w_format):
        if (found := grid_obstacle(format)) is not None:
            return found
    if x_format.group is not None:
        return f"activations of {x_format.name} have a scale for every {x_format.group} features, not one a token"
    if x_format.bits > (8 if x_format.scheme == "symmetric" else 4):
        return f"{x_format.scheme} activations of {x_format.bits} bits do not fit the operand's signed bytes"
    if w_format.bits > 4:
        return f"weights of {w_format.name} have {w_format.bits} bits; two of 4 bits share a byte"
    if d_in % 2:
        return f"d_in = {d_in} is odd, and two weights share a byte"
    if d_in > LARGEST_D_IN:
        return f"d_in = {d_in}, and int32 sums are exact up to {LARGEST_D_IN}"
    if w_format.group is not None and (w_format.group % 2 or d_in % w_format.group):
        return f"groups of {w_format.group} weights; they must be of an even number that divides d_in = {d_in}"
    return None
