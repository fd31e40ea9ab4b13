"""int4_matmul as it is defined: levels times scales, one dense product, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from ..coded import HasCodes
from ..nibbles import unpack_nibbles
from ..schemes import Scheme


def int4_matmul_reference(
    x: HasCodes, w: HasCodes, *, x_scheme: Scheme = "symmetric", w_scheme: Scheme = "symmetric",
    bias: Tensor | None = None, residual: Tensor | None = None, dtype: torch.dtype = torch.float64,
) -> Tensor:  # fmt: skip
    """`int4_matmul` as X W^T + bias + residual of the decoded matrices, in `dtype`."""
    d_in = 2 * w.codes.shape[-1]
    tokens = x.scale.shape[:-1]
    y = _decoded(x, x_scheme, (*tokens, d_in), dtype) @ _decoded(w, w_scheme, (len(w.codes), d_in), dtype).T
    if bias is not None:
        y += bias.to(dtype)
    if residual is not None:
        y += residual.to(dtype)
    return y


def _decoded(coded: HasCodes, scheme: Scheme, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(q - z) s, or (q + 1/2) s, of codes in any container; scale (..., G) covers consecutive groups of features."""
    codes, scale, zero = coded.codes, coded.scale, coded.zero
    if codes.dtype == torch.uint8:
        levels = unpack_nibbles(codes, signed=scheme != "asymmetric").to(dtype)
    elif codes.shape != shape:  # in planes
        levels = codes.transpose(-1, -2).reshape(shape).to(dtype)
    else:
        levels = codes.to(dtype)
    if scheme == "midrise":
        levels = levels + 0.5
    levels = levels.reshape(*shape[:-1], scale.shape[-1], -1)  # [..., G, d_in / G]
    if zero is not None:
        levels = levels - zero.to(dtype).unsqueeze(-1)
    return (levels * scale.to(dtype).unsqueeze(-1)).reshape(shape)
