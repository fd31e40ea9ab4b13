"""Read the next layer in a thread while this one computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Prefetch:
    """Hands out layers' tensors; behind each it begins to read the next one.

    For an accelerator, whose host would wait at the disk; on a CPU the cores are busy with the layer itself. At most
    one layer lies ready, in pinned memory for CUDA, from where copies need no wait.

    Args:
        read: index -> tensors by name, on the CPU; called in another thread.
        count: layers.
        device: to which the tensors will go.
    """

    def __init__(self, read: Callable[[int], Mapping[str, Tensor]], count: int, device: torch.device) -> None:
        self._read, self._count, self._pin = read, count, device.type == "cuda"
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[Mapping[str, Tensor]]] | None = None

    def get(self, index: int) -> Mapping[str, Tensor]:
        """Tensors of a layer, any order of layers; what reading it raised is raised here."""
        expected, self._next = self._next, None
        found = expected[1].result() if expected is not None and expected[0] == index else self._layer(index)
        if index + 1 < self._count:
            self._pool = self._pool or ThreadPoolExecutor(1, "prefetch")
            self._next = (index + 1, self._pool.submit(self._layer, index + 1))
        return found

    def _layer(self, index: int) -> Mapping[str, Tensor]:
        found = self._read(index)
        return {name: tensor.pin_memory() for name, tensor in found.items()} if self._pin else found
