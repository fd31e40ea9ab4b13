"""Loops compiled for the CPU by numba: whether they can be, and how they get at a tensor's memory.

They take addresses, since passing an array costs 0.5 us and an address 0.03: a decode step has some 250 such calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

T = TypeVar("T")


def has_numba(otherwise: str) -> bool:
    """Whether numba is there; where it is not, says what happens otherwise. Callers keep the answer."""
    try:
        import numba  # noqa: F401
    except ImportError:
        log.info("numba is not installed: %s", otherwise)
        return False
    return True


@cache
def compiles() -> bool:
    """Whether packed linears are compiled; says so once where they are not."""
    return has_numba("packed linears on a CPU take their steps in torch, several times as long")


def address(tensor: Tensor | None) -> int:
    """Of the first entry; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def in_parts(call: Callable[[int, int], object], count: int, least: int) -> None:
    """call(first, last) over 0..count - 1, in as many parts as torch has threads, each of at least `least`.

    The calls release the GIL.
    """
    threads = torch.get_num_threads()
    workers = min(threads, count // max(1, least)) if threads > 1 else 1
    if workers <= 1:
        call(0, count)
        return
    size = -(-count // workers)
    others = [_pool(workers).submit(call, first, min(first + size, count)) for first in range(size, count, size)]
    call(0, size)
    for other in others:
        other.result()


class Prepared(Generic[T]):
    """Holds what is made once from a module's tensors, addresses among it: copies and pickles start empty."""

    def __init__(self) -> None:
        self.value: T | None = None

    def __reduce__(self) -> tuple[type[Prepared[T]], tuple[()]]:
        return type(self), ()


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers - 1, thread_name_prefix="sq-rows")
