"""Integer quantizers, clip search, RTN, GPTQ and nibble packing."""

from __future__ import annotations

from sq.quant.activation import ActivationQuantizer, clip_candidates, shared_clip
from sq.quant.gptq import gptq
from sq.quant.grid import SCHEMES, Grid, Scheme, code_range, row_grid
from sq.quant.hessian import HessianAccumulator, conjugate_hessian, inverse_factor
from sq.quant.packing import pack, packed_size, unpack
from sq.quant.rtn import rtn
from sq.quant.straight_through import straight_through
from sq.quant.weight import QuantizedWeight, WeightQuantizer

__all__ = [
    "SCHEMES",
    "ActivationQuantizer",
    "Grid",
    "HessianAccumulator",
    "QuantizedWeight",
    "Scheme",
    "WeightQuantizer",
    "clip_candidates",
    "code_range",
    "conjugate_hessian",
    "gptq",
    "inverse_factor",
    "pack",
    "packed_size",
    "row_grid",
    "rtn",
    "shared_clip",
    "straight_through",
    "unpack",
]
