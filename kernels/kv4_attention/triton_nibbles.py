# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of its kernels and takes tl.constexpr only.)
"""Nibbles as floating-point numbers by their bits: int-to-float conversions run at a quarter of the rate."""

from __future__ import annotations

import triton
import triton.language as tl

# Four bytes $4 of codes: their low nibbles as four 16-bit numbers $0 $1, their high ones as $2 $3. prmt puts the bytes
# of its first two operands (0-3, 4-7) where its third says; the second is the upper byte of 128.0 or 1024.0.
_UNPACK = """
{{
.reg .b32 low, high;
and.b32 low, $4, 0x0F0F0F0F;
shr.u32 high, $4, 4;
and.b32 high, high, 0x0F0F0F0F;
prmt.b32 $0, low, {upper}, 0x4140;
prmt.b32 $1, low, {upper}, 0x4342;
prmt.b32 $2, high, {upper}, 0x4140;
prmt.b32 $3, high, {upper}, 0x4342;
}}
"""
UNPACK_BF16 = tl.constexpr(_UNPACK.format(upper="0x43434343"))
UNPACK_FP16 = tl.constexpr(_UNPACK.format(upper="0x64646464"))


@triton.jit
def nibbles(b_packed, NIBBLES: tl.constexpr, COMPUTE: tl.constexpr, ASM: tl.constexpr):
    """The low and the high nibbles u of uint8, exact: 128 + u for "bf16", u for "fp16" and "fp32".

    128 + u is 0x4300 | u in bfloat16, 1024 + u is 0x6400 | u in float16; 1024 is subtracted again (README.md says why).
    """
    if NIBBLES == "fp32":
        b_low = (b_packed & 15).to(tl.float32)
        b_high = (b_packed >> 4).to(tl.float32)
    elif ASM:
        if NIBBLES == "bf16":
            b_low, b_high = tl.inline_asm_elementwise(
                UNPACK_BF16, "=r,=r,=r,=r,r", [b_packed], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
            )
        else:
            b_low, b_high = tl.inline_asm_elementwise(
                UNPACK_FP16, "=r,=r,=r,=r,r", [b_packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
            )
    else:
        b_word = b_packed.to(tl.int16)
        if NIBBLES == "bf16":
            b_low = ((b_word & 15) | 0x4300).to(tl.bfloat16, bitcast=True)
            b_high = ((b_word >> 4) | 0x4300).to(tl.bfloat16, bitcast=True)
        else:
            b_low = ((b_word & 15) | 0x6400).to(tl.float16, bitcast=True)
            b_high = ((b_word >> 4) | 0x6400).to(tl.float16, bitcast=True)
    if NIBBLES == "fp16":
        b_low = b_low - 1024.0
        b_high = b_high - 1024.0
    return b_low.to(COMPUTE), b_high.to(COMPUTE)
