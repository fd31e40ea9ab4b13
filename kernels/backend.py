"""Which implementation of an operation runs: Triton or torch."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from .arguments import check_choice

Backend = Literal["auto", "torch", "triton"]

# What fits one Hopper or Ampere SM; the kernels run on others as well, with a choice of launch that is less sharp.
REGISTERS, THREADS, SHARED_BYTES = 65536, 2048, 227 * 1024
LARGEST_TILE = 32768  # float32 accumulators: half of the registers
LARGEST_ACCUMULATOR = 128  # 32-bit registers of a thread, of 255: the rest holds operands and addresses
LEAST_SIDE = 16  # of a tensor-core product

_TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def picks_triton(backend: Backend, x: Tensor, obstacle: str | None) -> bool:
    """Whether the Triton kernel computes on x.

    Args:
        backend: "auto" takes Triton for a bfloat16, float16 or float32 tensor on CUDA, where Triton is installed and
            the kernel has no obstacle, and torch everywhere else; "torch" and "triton" force.
        obstacle: why the kernel does not take this shape, None if it does.

    Raises:
        ValueError: an unknown backend, or "triton" where the kernel cannot run.
    """
    check_choice("backend", backend, Backend)
    if backend == "torch" or (backend == "auto" and not x.is_cuda):
        return False
    if x.dtype not in _TRITON_DTYPES:
        obstacle = f"it computes in bfloat16, float16 and float32, not in {x.dtype}"
    elif not _has_triton():
        obstacle = "Triton is not installed"
    elif x.device.type != "cuda" and not (interpreted() and backend == "triton"):
        obstacle = f"the tensor is on {x.device}, and Triton's interpreter is off (TRITON_INTERPRET=1 turns it on)"
    if obstacle is None:
        return True
    if backend == "triton":
        raise ValueError(f'backend="triton" cannot run here: {obstacle}; use backend="torch" or "auto"')
    return False


@cache
def _has_triton() -> bool:
    """Looked up once: finding a package costs half of a small call."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which Triton decides by the environment when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def sm_count(device: torch.device) -> int:
    """SMs of a GPU; 2 in the interpreter, so that its programs loop as well."""
    return 2 if interpreted() else torch.cuda.get_device_properties(device).multi_processor_count


def power_of_two_from(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least n and at least `least`."""
    return 1 << (max(n, least) - 1).bit_length()
