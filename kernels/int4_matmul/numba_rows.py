"""Products of packed rows and a few tokens, compiled for the CPU; imports numba, as nothing else here does.

A row's nibbles u = 0..15 meet int8 codes in VNNI's product of unsigned and signed bytes; signed codes are u - 8 once
bit 3 of each nibble is turned over: sum x q = sum x u - 8 sum x.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
HAS_VNNI = not numba.config.CPU_NAME and all(
    _FEATURES.get(name, False) for name in ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
)


@intrinsic
def pointer(typing, address):
    """An int64 as a pointer, which carray takes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def dot_of(vnni: bool):
    """sum_j low(w_j) x_j + high(w_j) z_j over count bytes, int32; count a multiple of 32."""

    @intrinsic
    def dot(typing, w, x, z, count, flip):
        def generate(context, builder, signature, arguments):
            w, x, z, count, flip = arguments
            byte, word, size = ir.IntType(8), ir.IntType(32), ir.IntType(64)
            total = cgutils.alloca_once_value(builder, ir.Constant(word, 0))

            def run(width, first, last):
                """All blocks of `width` bytes; added to the total."""
                lanes, codes = ir.VectorType(word, width // 4), ir.VectorType(byte, width)
                zero = ir.Constant(lanes, [0] * (width // 4))
                low, high = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
                mask, four = (ir.Constant(codes, [value] * width) for value in (15, 4))
                flips = builder.shuffle_vector(
                    builder.insert_element(ir.Constant(codes, ir.Undefined), flip, ir.Constant(word, 0)),
                    ir.Constant(codes, ir.Undefined),
                    ir.Constant(ir.VectorType(word, width), [0] * width),
                )

                def load(base, at):
                    loaded = builder.load(builder.inttoptr(builder.add(base, at), codes.as_pointer()))
                    loaded.align = 1
                    return loaded

                def add(into, unsigned, signed):
                    old = builder.load(into)
                    if vnni:
                        name = f"llvm.x86.avx512.vpdpbusd.{8 * width}"
                        kind = ir.FunctionType(lanes, [lanes, codes, codes])
                        function = cgutils.get_or_insert_function(builder.module, kind, name)
                        new = builder.call(function, [old, unsigned, signed])
                    else:
                        wide = ir.VectorType(word, width)
                        product = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
                        new = old
                        for part in range(4):
                            picked = [part * width // 4 + lane for lane in range(width // 4)]
                            indices = ir.Constant(ir.VectorType(word, width // 4), picked)
                            new = builder.add(new, builder.shuffle_vector(product, product, indices))
                    builder.store(new, into)

                step = ir.Constant(size, width)
                with cgutils.for_range_slice(builder, first, last, step, intp=size) as (at, _):
                    packed = builder.xor(load(w, at), flips)
                    add(low, builder.and_(packed, mask), load(x, at))
                    add(high, builder.lshr(packed, four), load(z, at))
                kind = ir.FunctionType(word, [lanes])
                reduce = cgutils.get_or_insert_function(
                    builder.module, kind, f"llvm.vector.reduce.add.v{width // 4}i32"
                )
                sum_ = builder.call(reduce, [builder.add(builder.load(low), builder.load(high))])
                builder.store(builder.add(builder.load(total), sum_), total)

            nothing = ir.Constant(size, 0)
            whole = builder.and_(count, ir.Constant(size, -64))
            run(64, nothing, whole)
            with builder.if_then(builder.icmp_signed("<", whole, count)):
                run(32, whole, count)
            return builder.load(total)

        return types.int32(types.int64, types.int64, types.int64, types.int64, types.uint8), generate

    return dot


@njit
def epilogue(out, bits, token_sum, zeros, level, row_sums, token_zero, scales, token_scale, biases):
    """(out - z_o sum x - z_t sum w) s_o s_t + bias, in place; all (count,), zeros and biases empty for none.

    Slices come from the caller: an index such as start + i might be negative for all numba knows, and a loop over it
    is not vectorized.
    """
    if len(zeros):
        for i in range(len(out)):
            out[i] -= token_sum * zeros[i]
    elif level != np.float32(0):
        for i in range(len(out)):
            out[i] -= token_sum * level
    if token_zero != np.float32(0):
        for i in range(len(out)):
            out[i] -= token_zero * row_sums[i]
    for i in range(len(out)):
        out[i] = out[i] * scales[i] * token_scale
    if len(biases):
        for i in range(len(out)):
            out[i] += biases[i]


@njit
def scaled_to_bf16(sums, scales, token_scale, target):
    """The usual epilogue, without zeros and bias, in one loop: the same bits."""
    for i in range(len(sums)):
        value = sums[i] * scales[i] * token_scale
        b = np.float32(value).view(np.uint32)
        rounded = np.uint32(b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        target[i] = np.uint16(0x7FC0) if value != value else np.uint16(rounded)


@njit
def to_bf16(bits, target):
    """Bits of float32 to those of bfloat16, to nearest even; NaN as torch writes it."""
    for i in range(len(bits)):
        b = bits[i]
        # numba widens sums of uint32 to 64 bits: narrowed again, 16 of them share an instruction
        rounded = np.uint32(b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        target[i] = np.uint16(0x7FC0) if nan else np.uint16(rounded)


dot = dot_of(HAS_VNNI)


@njit(nogil=True, cache=True, error_model="numpy")
def rows(first, last, tokens, groups, b, w, flip, offset, w_scale, w_zero, level, sums, x, x_scale, x_zero, shift,
         bias, bf16, y, d_out):  # fmt: skip
    """`CpuWeight.product` of output features first..last - 1; addresses, 0 for what is left out."""
    size, level, shift = b // groups, np.float32(level), np.float32(shift)
    even = size - size % 32
    packed = carray(pointer(w), (d_out, b), np.uint8)
    scales = carray(pointer(w_scale), (d_out, groups), np.float32)
    zeros = carray(pointer(w_zero), (d_out, groups), np.float32)
    row_sums = carray(pointer(sums), (d_out,), np.float32)
    biases = carray(pointer(bias), (d_out,), np.float32)
    codes = carray(pointer(x), (tokens, 2, b), np.int8)
    token_scales = carray(pointer(x_scale), (tokens,), np.float32)
    token_zeros = carray(pointer(x_zero), (tokens,), np.float32)
    wide = carray(pointer(y), (tokens, d_out), np.float32)
    narrow = carray(pointer(y), (tokens, d_out), np.uint16)
    half, none = np.uint8(4), np.float32(0)
    out, ones = np.empty(64, np.float32), np.ones(64, np.float32)
    bits = out.view(np.uint32)
    token_sums = np.zeros((tokens, groups), np.int32)
    for t in range(tokens):
        for g in range(groups):
            found = np.int32(0)
            for p in range(2):
                part = codes[t, p, g * size : (g + 1) * size]
                for j in range(size):
                    found += np.int32(part[j])
            token_sums[t, g] = found
    block = 64  # rows: their weights stay in the L1 cache for all tokens, and what follows is vectorized
    found_sums = np.empty(block, np.int32)
    totals = np.empty(block, np.float64)
    for start in range(first, last, block):
        count = min(block, last - start)
        part = slice(start, start + count)
        for t in range(tokens):
            totals[:] = 0.0
            for g in range(groups):
                here = x + t * 2 * b + g * size
                for i in range(count):
                    value = dot(w + (start + i) * b + g * size, here, here + b, even, flip) if even else np.int32(0)
                    for j in range(g * size + even, (g + 1) * size):
                        u = packed[start + i, j] ^ flip
                        value += np.int32(codes[t, 0, j]) * np.int32(u & np.uint8(15))
                        value += np.int32(codes[t, 1, j]) * np.int32(u >> half)
                    found_sums[i] = value - offset * token_sums[t, g]
                if groups > 1:
                    for i in range(count):
                        zero = np.float64(zeros[start + i, g]) if w_zero else np.float64(level)
                        value64 = np.float64(found_sums[i]) - zero * np.float64(token_sums[t, g])
                        totals[i] += value64 * np.float64(scales[start + i, g])
            if groups > 1:
                for i in range(count):
                    out[i] = np.float32(totals[i])
            else:
                for i in range(count):
                    out[i] = np.float32(found_sums[i])
            token_zero = shift + (token_zeros[t] if x_zero else np.float32(0))
            own = scales.reshape(-1)[part] if groups == 1 else ones[:count]
            offsets = zeros.reshape(-1)[part] if w_zero and groups == 1 else zeros.reshape(-1)[:0]
            epilogue(
                out[:count], bits[:count], np.float32(token_sums[t, 0]), offsets, level if groups == 1 else none,
                row_sums[part], token_zero, own, token_scales[t], biases[part] if bias else biases[:0],
            )  # fmt: skip
            if bf16:
                to_bf16(bits[:count], narrow[t, part])
            else:
                wide[t, part] = out[:count]


@njit(nogil=True, cache=True, error_model="numpy")
def finish(first, last, d_out, n, sums, w_scale, w_zero, level, row_sums, x, x_scale, x_zero, shift, bias, bf16, y):
    """y = (sums - z_o sum x - z_t sum w) s_o s_t + bias of tokens first..last - 1; sums float32, (T, d_out)."""
    level, shift = np.float32(level), np.float32(shift)
    products = carray(pointer(sums), (last, d_out), np.float32)
    scales = carray(pointer(w_scale), (d_out,), np.float32)
    zeros = carray(pointer(w_zero), (d_out,), np.float32)
    of_rows = carray(pointer(row_sums), (d_out,), np.float32)
    biases = carray(pointer(bias), (d_out,), np.float32)
    codes = carray(pointer(x), (last, n), np.int8)
    token_scales = carray(pointer(x_scale), (last,), np.float32)
    token_zeros = carray(pointer(x_zero), (last,), np.float32)
    wide = carray(pointer(y), (last, d_out), np.float32)
    narrow = carray(pointer(y), (last, d_out), np.uint16)
    block = min(d_out, 1024)  # features: 4 KiB stay in the L1 cache from step to step
    out = np.empty(block, np.float32)
    bits = out.view(np.uint32)
    for t in range(first, last):
        scale, zero = token_scales[t], shift + (token_zeros[t] if x_zero else np.float32(0))
        token_sum = np.float32(0)
        if w_zero or level != np.float32(0):
            found = np.int32(0)
            for j in range(n):
                found += np.int32(codes[t, j])
            token_sum = np.float32(found)
        if bf16 and not bias and not w_zero and level == np.float32(0) and zero == np.float32(0):
            scaled_to_bf16(products[t], scales, scale, narrow[t])
            continue
        for start in range(0, d_out, block):
            part = slice(start, min(start + block, d_out))
            count = part.stop - start
            out[:count] = products[t, part]
            epilogue(
                out[:count], bits[:count], token_sum, zeros[part] if w_zero else zeros[:0], level, of_rows[part], zero,
                scales[part], scale, biases[part] if bias else biases[:0],
            )  # fmt: skip
            if bf16:
                to_bf16(bits[:count], narrow[t, part])
            else:
                wide[t, part] = out[:count]
