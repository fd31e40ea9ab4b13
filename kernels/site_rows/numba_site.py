"""What stands in front of a packed linear, a token at a time, compiled for the CPU; imports numba."""

from __future__ import annotations

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Sums in any order and fused multiply-adds, or loops over a row would not be vectorized. Grids are computed without.
_SUMS = {"reassoc", "nsz", "contract"}


@intrinsic
def pointer(typing, address):
    """An int64 as a pointer, which carray takes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@njit
def value_of(bits):
    """The float32 of its bits, int32 or uint32."""
    return np.uint32(bits).view(np.float32)


@njit
def widened(half):
    """bfloat16 bits as float32."""
    return value_of(np.uint32(half) << np.uint32(16))


@njit
def nearest(value):
    """The float32 as the nearest bfloat16, ties to even; NaN stays one."""
    b = np.float32(value).view(np.uint32)
    rounded = np.uint32(b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return value_of(np.uint32(0x7FC00000) if value != value else rounded)


@njit
def round_to_bf16(values):
    """Each to its `nearest`, in place."""
    for j in range(len(values)):
        values[j] = nearest(values[j])


@njit(fastmath=_SUMS)
def sum_of_squares(v):
    """Float32."""
    total = np.float32(0)
    for j in range(len(v)):
        total += v[j] * v[j]
    return total


@njit
def rms_norm(v, gain, eps):
    """v / sqrt(mean(v^2) + eps), rounded, times the gain, rounded; in place."""
    factor = np.float32(1) / np.sqrt(sum_of_squares(v) / np.float32(len(v)) + eps)
    for j in range(len(v)):
        v[j] = nearest(nearest(v[j] * factor) * widened(gain[j]))


@njit
def exp(x):
    """e^x of float32 within 1e-7 of it, 0 below -87.3 and e^88 from there on: 2^i e^r, |r| <= ln(2) / 2.

    The library's is called once an entry (5 ns each); this is vectorized.
    """
    x = min(max(x, np.float32(-87.3)), np.float32(88.0))
    i = np.rint(x * np.float32(1.44269504))
    r = x - i * np.float32(0.693359375)
    r = r + i * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * value_of(np.uint32(np.int32(i) + np.int32(127)) << np.uint32(23))


@njit
def gate(v, up):
    """silu(v), rounded, times up, rounded; in place."""
    for j in range(len(v)):
        v[j] = nearest(nearest(v[j] / (np.float32(1) + exp(-v[j]))) * widened(up[j]))


@njit(fastmath=_SUMS)
def row_times(out, row, matrix):
    """out (w,) = row (K,) @ matrix (K, w) of bfloat16 bits; not rounded."""
    count, width = matrix.shape
    for c in range(width):
        out[c] = np.float32(0)
    whole = count - count % 8
    for k in range(0, whole, 8):  # eight rows at a time: out is loaded and stored once for them
        m0, m1, m2, m3 = matrix[k], matrix[k + 1], matrix[k + 2], matrix[k + 3]
        m4, m5, m6, m7 = matrix[k + 4], matrix[k + 5], matrix[k + 6], matrix[k + 7]
        for c in range(width):
            first = row[k] * widened(m0[c]) + row[k + 1] * widened(m1[c])
            first += row[k + 2] * widened(m2[c]) + row[k + 3] * widened(m3[c])
            second = row[k + 4] * widened(m4[c]) + row[k + 5] * widened(m5[c])
            second += row[k + 6] * widened(m6[c]) + row[k + 7] * widened(m7[c])
            out[c] += first + second
    for k in range(whole, count):
        for c in range(width):
            out[c] += row[k] * widened(matrix[k, c])


@njit(fastmath=_SUMS)
def low_rank(v, basis, change, coefficients, scratch):
    """v + (v U) C; basis is U^T (r, n), change C (r, n); products rounded, then the sum; in place."""
    for r in range(len(basis)):
        total = np.float32(0)
        for k in range(len(v)):
            total += v[k] * widened(basis[r, k])
        coefficients[r] = total
    round_to_bf16(coefficients)
    row_times(scratch, coefficients, change)
    round_to_bf16(scratch)
    for j in range(len(v)):
        v[j] += scratch[j]
    round_to_bf16(v)


@njit(fastmath=_SUMS)
def mix(out, v, first):
    """out = R1^T V of V (n1, n2) and R1 (n1, n1); not rounded."""
    n1 = len(v)
    whole = n1 - n1 % 4
    for j in range(n1):
        row = out[j]
        row[:] = np.float32(0)
        for i in range(0, whole, 4):  # four at a time, as in row_times
            v0, v1, v2, v3 = v[i], v[i + 1], v[i + 2], v[i + 3]
            f0, f1, f2, f3 = first[i, j], first[i + 1, j], first[i + 2, j], first[i + 3, j]
            w0, w1, w2, w3 = widened(f0), widened(f1), widened(f2), widened(f3)
            for c in range(len(row)):
                row[c] += (w0 * v0[c] + w1 * v1[c]) + (w2 * v2[c] + w3 * v3[c])
        for i in range(whole, n1):
            factor, own = widened(first[i, j]), v[i]
            for c in range(len(row)):
                row[c] += factor * own[c]


@njit
def turned(bits):
    """A float's bits with the magnitude of negative ones turned over: integers in the order of the floats, and back."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit
def grid(v, scheme, steps, clip, low_end, high_end):
    """Scale and zero of kernels/grid.py for a row of bfloat16 values; NaN where an entry is not finite."""
    bits = v.view(np.uint32)
    largest = np.uint32(0)
    for j in range(len(bits)):
        largest = np.uint32(max(largest, bits[j] & np.uint32(0x7FFFFFFF)))
    if largest >= np.uint32(0x7F800000):
        return np.float32(np.nan), np.float32(0)
    if scheme == 1 or low_end != np.float32(1) or high_end != np.float32(1):
        ordered = v.view(np.int32)
        low_bits, high_bits = np.int32(0x7FFFFFFF), np.int32(-0x7FFFFFFF)
        for j in range(len(ordered)):
            key = turned(ordered[j])
            low_bits, high_bits = np.int32(min(low_bits, key)), np.int32(max(high_bits, key))
        low = value_of(turned(low_bits)) * low_end
        high = value_of(turned(high_bits)) * high_end
    else:
        high = value_of(largest)
        low = -high
    if scheme != 1:
        scale = max(-low, high) * clip / steps
        if scale == np.float32(0):
            scale = np.float32(1) if scheme == 0 else np.float32(2.0**-100)
        return scale, np.float32(0)
    low, high = min(low, np.float32(0)) * clip, max(high, np.float32(0)) * clip
    if (high - low) / steps == np.float32(0):
        low, high = np.float32(-1), np.float32(1)
    scale = (high - low) / steps
    return scale, np.float32(np.rint(-low / scale))


@njit
def codes_of(v, scheme, scale, zero, least, most, codes, planes):
    """round(v / scale) + zero, or floor(v / scale), clamped to least..most, as planes (2, n / 2); codes is scratch."""
    if scheme == 2:
        for j in range(len(v)):
            codes[j] = np.int8(np.int32(min(max(np.floor(v[j] / scale), least), most)))
    else:
        for j in range(len(v)):
            codes[j] = np.int8(np.int32(min(max(np.rint(v[j] / scale) + zero, least), most)))
    for j in range(len(v) // 2):
        planes[0, j] = codes[2 * j]
        planes[1, j] = codes[2 * j + 1]


@njit(nogil=True, cache=True, error_model="numpy")
def site(first, last, n, x, x_stride, pieces, piece_stride, up, up_stride, gain, eps, diagonal, rank, basis, change,
         n1, blocks, block_step, r1, out, scheme, steps, clip, low_end, high_end, least, most,
         codes, scale, zero):  # fmt: skip
    """The steps of `SiteRows` for tokens first..last - 1; addresses of what is left out are 0.

    Token t lies in pieces of n / pieces entries: piece i begins x_stride t + piece_stride i entries behind x.
    """
    n2 = n // n1
    eps, steps, clip = np.float32(eps), np.float32(steps), np.float32(clip)
    low_end, high_end, least, most = np.float32(low_end), np.float32(high_end), np.float32(least), np.float32(most)
    values, scratch = np.empty(n, np.float32), np.empty(n, np.float32)
    row_codes, coefficients = np.empty(n, np.int8), np.empty(max(rank, 1), np.float32)
    for t in range(first, last):
        for i in range(pieces):
            row = carray(pointer(x + 2 * (t * x_stride + i * piece_stride)), (n // pieces,), np.uint16)
            own = values[i * len(row) : (i + 1) * len(row)]
            for j in range(len(own)):
                own[j] = widened(row[j])
        if gain:
            rms_norm(values, carray(pointer(gain), (n,), np.uint16), eps)
        if up:
            gate(values, carray(pointer(up + 2 * t * up_stride), (n,), np.uint16))
        if diagonal:
            factors = carray(pointer(diagonal), (n,), np.uint16)
            for j in range(n):
                values[j] *= widened(factors[j])
            round_to_bf16(values)
        if rank:
            sides = carray(pointer(basis), (rank, n), np.uint16), carray(pointer(change), (rank, n), np.uint16)
            low_rank(values, sides[0], sides[1], coefficients, scratch)
        if blocks:
            for i in range(n1):
                own = slice(i * n2, (i + 1) * n2)
                block = carray(pointer(blocks + 2 * i * block_step), (n2, n2), np.uint16)
                row_times(scratch[own], values[own], block)
            round_to_bf16(scratch)
            values, scratch = scratch, values
        if r1:
            mix(scratch.reshape(n1, n2), values.reshape(n1, n2), carray(pointer(r1), (n1, n1), np.uint16))
            round_to_bf16(scratch)
            values, scratch = scratch, values
        if out:
            bits, target = values.view(np.uint32), carray(pointer(out + 2 * t * n), (n,), np.uint16)
            for j in range(n):
                target[j] = np.uint16(bits[j] >> np.uint32(16))
        if codes:
            found, origin = grid(values, scheme, steps, clip, low_end, high_end)
            planes = carray(pointer(codes + t * n), (2, n // 2), np.int8)
            carray(pointer(scale), (last,), np.float32)[t] = found
            if zero:
                carray(pointer(zero), (last,), np.float32)[t] = origin
            if np.isnan(found):
                planes[:] = 0
            else:
                codes_of(values, scheme, found, origin, least, most, row_codes, planes)
