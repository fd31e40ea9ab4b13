"""A site and its linears as one call, for a few tokens on one thread; imports numba."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numba import carray, njit

from ..int4_matmul import numba_rows
from ..int4_matmul.numba_rows import rows
from . import numba_site
from .numba_site import pointer, site


def _decode_of(*stamps: int):
    """The compiled function. numba's cache looks at this file alone, so its key must tell when the others change."""

    @njit(nogil=True, cache=True, error_model="numpy")
    def decode(tokens, x, x_stride, up, up_stride, y, bf16, numbers, factors):
        """y (tokens, d_out) of tokens x, whose rows begin x_stride entries apart; `DecodeStep` has the rest."""
        _ = stamps
        i = carray(pointer(numbers), (22,), np.int64)
        f = carray(pointer(factors), (9,), np.float64)
        n = i[0]
        codes = np.empty(tokens * n, np.int8)
        scale, zero = np.empty(tokens, np.float32), np.empty(tokens, np.float32)
        q, s, z = np.int64(codes.ctypes.data), np.int64(scale.ctypes.data), np.int64(zero.ctypes.data) * i[10]
        site(0, tokens, n, x, x_stride, 1, n, up, up_stride, i[1], f[0], i[2], i[3], i[4], i[5], i[6], i[7], i[8],
             i[9], 0, i[11], f[1], f[2], f[3], f[4], f[5], f[6], q, s, z)  # fmt: skip
        rows(0, i[12], tokens, i[13], i[14], i[15], i[16], i[17], i[18], i[19], f[7], i[20], q, s, z, f[8], i[21],
             bf16, y, i[12])  # fmt: skip
        return len(codes) + len(scale) + len(zero)  # numba frees an array behind its last use, whatever has its address

    return decode


decode = _decode_of(*(Path(part.__file__).stat().st_mtime_ns for part in (numba_rows, numba_site)))
