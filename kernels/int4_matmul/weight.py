"""What is computed from a packed weight once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..coded import HasCodes
from ..schemes import Scheme
from .planes import levels_of


@torch.no_grad()
def weight_sums(w: HasCodes, scheme: Scheme) -> Tensor:
    """Row sums that a zero point of the activations is multiplied by, float32 (d_out,).

    sum_k (p_k - z) for one scale per channel: exact, and to be scaled with the product; sum_k (p_k - z) s for groups.
    p is the code, code + 1/2 for midrise. Computed in float64.
    """
    groups = w.scale.shape[1]
    size = 2 * w.codes.shape[-1] // groups
    sums = torch.empty(w.codes.shape[0], device=w.codes.device)
    step = max(1, 2**22 // (groups * size))
    for first in range(0, len(sums), step):
        rows = slice(first, first + step)
        levels, unit = levels_of(w.codes[rows], scheme, groups)  # [rows, G, 2, d_in / 2G]
        part = levels.sum((2, 3), dtype=torch.int64).double() * unit
        if w.zero is not None:
            part -= size * w.zero[rows].double()
        if groups > 1:
            part *= w.scale[rows].double()
        sums[rows] = part.sum(1).float()
    return sums
