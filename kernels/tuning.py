"""Launch parameters of the kernels that keep a tile [BLOCK_N1, BLOCK_N2] of a token in registers. Imports Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import LARGEST_ACCUMULATOR, REGISTERS, SHARED_BYTES, THREADS, interpreted, power_of_two_from, sm_count
from .tuned.autotune import stored_autotune


def configs() -> list[triton.Config]:
    """Every launch worth a try; one in the interpreter, where Triton's autotuner has no driver to time with."""
    if interpreted():
        return [triton.Config({"PROGRAMS_PER_SM": 1}, num_warps=4, num_stages=1)]
    return [
        triton.Config({"PROGRAMS_PER_SM": programs}, num_warps=warps, num_stages=stages)
        for warps in (2, 4, 8, 16)
        for stages in (1, 2, 3)
        for programs in (1, 2, 4, 8)
    ]


def prune(candidates: list[triton.Config], named_args: dict[str, Any], **meta: Any) -> list[triton.Config]:
    """The configs whose accumulators and buffers fit an SM; never empty.

    Kernels say by HAS_LEFT and HAS_RIGHT which factors, of the sides of their tile, they keep beside it.
    """
    tile = meta["BLOCK_N1"] * meta["BLOCK_N2"]
    matrices = meta["BLOCK_N1"] ** 2 * meta["HAS_LEFT"] + meta["BLOCK_N2"] ** 2 * meta["HAS_RIGHT"]
    itemsize = named_args["p_x"].element_size()

    def fits(config: triton.Config) -> bool:
        threads, programs = 32 * config.num_warps, config.kwargs["PROGRAMS_PER_SM"]
        accumulator = tile // threads
        shared = (matrices + config.num_stages * tile) * itemsize
        return bool(
            4 <= accumulator <= LARGEST_ACCUMULATOR
            and threads * programs <= THREADS
            and threads * programs * 2 * accumulator <= REGISTERS
            and shared * programs <= SHARED_BYTES
        )

    widest = max(candidates, key=lambda c: (c.num_warps, -c.num_stages, -c.kwargs["PROGRAMS_PER_SM"]))
    return [config for config in candidates if fits(config)] or [widest]


def autotune(kernel: Any) -> Any:
    """Kernel tuned per shape, scheme and power-of-two bucket of tokens, so that a new token count costs no tuning.

    Launches are stored for later processes: kernels/tuned/README.md.
    """
    key = [name for name in kernel.arg_names if name.isupper() and name not in ("T", "PROGRAMS_PER_SM")]
    return stored_autotune(kernel, configs=configs(), key=key, prune=prune)


def compute_dtype(x: Tensor) -> tl.dtype:
    """What products are computed in: x's dtype; float32 in the interpreter, whose bfloat16 arithmetic is wrong."""
    if interpreted():
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[x.dtype]


def start(kernel: Any, x: Tensor, work: int, *args: Any, **meta: Any) -> None:
    """Launch persistent programs: as many per SM as the tuned config says, and no more than `work`."""
    sms = sm_count(x.device)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        kernel[lambda config: (min(work, sms * config["PROGRAMS_PER_SM"]),)](*args, **meta)


def token_bucket(tokens: int) -> int:
    """Token count rounded up to a power of two, at least 16."""
    return power_of_two_from(tokens, least=16)
