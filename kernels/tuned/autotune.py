# mypy: allow-untyped-calls
"""Triton's autotuner with a memory: a launch that the store knows is taken, one that was tuned is stored."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import triton
import triton.testing
from torch import Tensor

from .store import Launch, Store

Prune = Callable[..., list[triton.Config]]

_seconds: float | None = None  # a tuning's limit
_incomplete: set[str] = set()


def stored_autotune(kernel: Any, *, configs: list[triton.Config], key: Sequence[str], prune: Prune) -> Any:
    """The kernel, launched by the stored config of its key values, else by the fastest, which is then stored.

    By what Triton 3.2 to 3.9 offer publicly: the config is chosen by `early_config_prune` and timed by `do_bench`. With
    one config (the interpreter) nothing is tuned, stored or read.

    Args:
        configs: every launch worth a try; with a limit of time, tried in an order that spreads over them.
        key: names of arguments; those that count tokens are to be bucketed.
        prune: (configs, arguments by name, **keywords) -> those that fit, at least one.

    A call raises ValueError where the store's file is damaged, foreign or older than the kernel.
    """
    tuning = _Tuning(kernel, [k for k in key if not k.endswith("_ASM")], prune)  # PTX follows from the other values
    hooks = {"early_config_prune": tuning.candidates}
    return triton.autotune(configs=configs, key=list(key), prune_configs_by=hooks, do_bench=tuning.bench)(kernel)


@contextmanager
def tuning_limit(seconds: float) -> Iterator[set[str]]:
    """Within, a tuning stops timing after so long and, cut short, stores nothing; yields the names of such kernels."""
    global _seconds
    before, _seconds = _seconds, seconds
    _incomplete.clear()
    try:
        yield _incomplete
    finally:
        _seconds = before


def limited() -> bool:
    """Whether a `tuning_limit` holds."""
    return _seconds is not None


@cache
def store() -> Store:
    """The launches of the current GPU, read once."""
    return Store(torch.cuda.get_device_name(), triton.__version__)


def launch_of(config: triton.Config) -> Launch:
    """Its parameters as they are stored."""
    return {**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages}


class _Tuning:
    """The two hooks of one kernel. Triton calls `candidates`, then `bench` for each of what it got, in order."""

    def __init__(self, kernel: Any, keys: Sequence[str], prune: Prune) -> None:
        self.kernel, self.keys, self.prune = kernel, keys, prune
        self.name: str = kernel.fn.__name__
        self.key: dict[str, Any] = {}
        self.left: list[triton.Config] = []
        self.times: list[tuple[float, triton.Config]] = []
        self.start = 0.0

    def candidates(self, configs: list[triton.Config], named_args: dict[str, Any], **meta: Any) -> list[triton.Config]:
        arguments = {**named_args, **meta}
        fitting = self.prune(configs, named_args, **meta)
        values = {k: arguments[k] for k in self.keys if k in arguments}
        self.key = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in values.items()}
        tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
        self.key["dtypes"] = " ".join(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
        launch = store().find(self.name, self.key)
        if launch is None:
            self.left = _spread(fitting)
            compile_together(self.kernel, self.left, named_args, meta)
            self.times, self.start = [], time.perf_counter()
            return list(self.left)
        self.left = []
        chosen = [config for config in fitting if launch_of(config) == launch]
        if not chosen:
            raise store().refuse(self.name, launch, len(fitting))
        return chosen

    def bench(self, call: Callable[[], Any], quantiles: Sequence[float]) -> list[float]:
        """Milliseconds at the quantiles; inf for a launch that does not compile or that no time was left for."""
        if not self.left:  # the stored one, which some versions of Triton time as well
            return [0.0] * len(quantiles)
        config = self.left.pop(0)
        late = _seconds is not None and bool(self.times) and time.perf_counter() - self.start > _seconds
        result = [float("inf")] * len(quantiles)
        try:
            if not late:
                result = benchmark(call, quantiles)
                self.times.append((result[0], config))
        except RuntimeError as error:
            if "CUDA" in str(error):  # the device is lost to this process: no other launch can be timed
                raise
            warnings.warn(f"{self.name} does not run as {launch_of(config)}: {error}", stacklevel=2)
        finally:
            if late:
                _incomplete.add(self.name)
            elif not self.left:
                self._keep()
        return result

    def _keep(self) -> None:
        if self.times:
            milliseconds, config = min(self.times, key=lambda pair: pair[0])
            store().add(self.name, self.key, launch_of(config), 1000 * milliseconds)


def compile_together(
    kernel: Any, configs: Sequence[triton.Config], named_args: dict[str, Any], meta: dict[str, Any]
) -> None:
    """Compile launches on all CPUs at once: one by one, seconds each, they take most of a tuning's time.

    Under a limit of time only as many as there are CPUs. What fails to compile fails again, and is reported, when
    it is timed. Before Triton 3.5, which has no such mode, launches compile one by one.
    """
    mode = getattr(triton, "AsyncCompileMode", None)
    cpus = len(os.sched_getaffinity(0))
    if mode is None or len(configs) < 2:
        return
    keywords = {name: value for name, value in meta.items() if name not in ("grid", "warmup")}
    with ThreadPoolExecutor(cpus) as pool, mode(pool, ignore_errors=True):
        for config in configs if _seconds is None else configs[:cpus]:
            kernel.warmup(*named_args.values(), grid=(1,), **keywords, **config.all_kwargs())


def benchmark(call: Callable[[], Any], quantiles: Sequence[float]) -> list[float]:
    """Milliseconds of a call at the quantiles, with a cold L2; about 50 ms in all."""
    result: list[float] = triton.testing.do_bench(call, warmup=10, rep=40, quantiles=list(quantiles))
    return result


def _spread(configs: list[triton.Config]) -> list[triton.Config]:
    """All of them, far apart first: by the fraction of i times the golden ratio."""
    return [configs[i] for i in sorted(range(len(configs)), key=lambda i: i * 0.6180339887498949 % 1)]
