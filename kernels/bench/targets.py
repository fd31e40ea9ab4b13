"""Floors and stretch targets on an H200, as data. Other GPUs' ratios are printed beside them all the same.

Source: rooflines of an H200 with a copy bandwidth of 4.3 TB/s and 788 TFLOP/s in bfloat16 on random data, both measured
there, and 1.25e15 int8 operations a second (what FP8, of the same nominal rate, sustains on an H100). The floor is what
makes a kernel worth shipping, the moon what the hardware leaves room for; derivations in kernels/<operation>/README.md.
"""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """Floor and stretch of a ratio; `higher` says which way is better."""

    floor: float
    moon: float
    higher: bool = True


TARGETS: dict[str, Target] = {
    # share of copy bandwidth, T >= 4096
    "rotate_quantize 4096": Target(0.75, 0.88),
    "rotate_quantize 5120": Target(0.70, 0.85),
    "rotate_quantize 8192": Target(0.55, 0.70),
    "rotate_quantize 11008": Target(0.40, 0.55),
    "rotate_quantize 13824": Target(0.33, 0.45),
    "rotate_quantize 14336": Target(0.33, 0.45),
    "rotate_quantize 28672": Target(0.28, 0.39),
    "block hadamard": Target(0.80, 0.92),
    "block_product": Target(0.35, 0.48),
    "block_product low rank": Target(0.28, 0.38),
    # times as fast as the products in eager torch, T = 4096
    "block_product eager": Target(1.2, 1.7),
    # times as fast as two matmuls and a quantizer in eager torch, T = 4096
    "rotate_quantize eager": Target(4.0, 6.0),
    # microseconds of one token in a CUDA graph
    "latency 4096": Target(5.0, 3.0, higher=False),
    "latency 11008": Target(8.0, 5.0, higher=False),
    # time of RMSNorm in front, as a share of the time without
    "norm": Target(0.10, 0.03, higher=False),
    # int4_matmul, M >= 2048: share of torch._int_mm's rate, times as fast as the others
    "prefill int_mm": Target(0.80, 0.95),
    "prefill bf16": Target(1.40, 1.70),
    "prefill int_mm scaled": Target(1.15, 1.35),
    "linear bf16": Target(1.30, 1.60),  # with rotate_quantize
    # int4_matmul in its decode form, times as fast as bfloat16
    "decode 1 o": Target(2.0, 2.5),
    "decode 1": Target(2.6, 3.3),
    "decode 16 o": Target(2.0, 2.4),
    "decode 16": Target(2.5, 3.2),
    "decode 64 o": Target(1.8, 2.4),
    "decode 64": Target(2.3, 3.1),
    # share of copy bandwidth of weights of 33 MB and more, M = 1
    "decode bandwidth": Target(0.75, 0.88),
    # times as fast as bfloat16 sdpa, batch >= 32, positions >= 2048
    "attention": Target(2.0, 3.3),
    # weight and KV bytes of bfloat16 over those of W4A4KV4
    "memory": Target(3.6, 3.77),
}


def verdict(ratio: float, target: Target | None) -> str:
    """What a ratio meets: "met moon", "met floor" or "below"; "" where there is no target."""
    if target is None:
        return ""
    for bound, met in ((target.moon, "met moon"), (target.floor, "met floor")):
        if ratio >= bound if target.higher else ratio <= bound:
            return met
    return "below"
