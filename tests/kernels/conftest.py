"""Every kernel runs in Triton's interpreter here, and natively as well where there is a GPU.

Triton decides for the interpreter when it is imported and for the whole process, so the interpreter has a process of
its own: the suite's process, its GPU tests and torch.compile in it stay as they were.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from sq.kernels.hadamard import hadamard

GUARD = 256  # entries on either side
INTERPRETER = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Executor]:
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in INTERPRETER.items():
            patch.setenv(name, value)
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        started = pool.submit(hadamard, torch.ones(1, 4), torch.ones(1, 1), backend="triton")
        try:
            started.result()
        except Exception as error:
            if "only 0-dimensional arrays" in str(error):
                pytest.skip("this Triton's interpreter cannot loop over a runtime range with NumPy 2.4 or newer")
            raise
    with pool:
        yield pool


class Runner:
    """Calls a function of sq.kernels with backend="triton"; CPU tensors go in and come out.

    Attributes:
        device: where the kernel runs. Tensors that are there already are passed as they are: torch shares the storage
            of a CPU tensor with the interpreter's process, so that its writes are seen, those out of bounds too.
    """

    def __init__(self, pool: Executor | None) -> None:
        self.pool = pool
        self.device = "cpu" if pool else "cuda"

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kwargs["backend"] = "triton"
        if self.pool is not None:
            return self.pool.submit(function, *args, **kwargs).result()
        args = tuple(move(value, self.device) for value in args)
        kwargs = {name: move(value, self.device) for name, value in kwargs.items()}
        return move(function(*args, **kwargs), "cpu")


def move(value: Any, device: str) -> Any:
    """Tensors, alone or in a named tuple, on the device; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(*(move(v, device) for v in value)) if hasattr(value, "_fields") else value


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Runner:
    """The kernel under test, in the interpreter or on the GPU."""
    return Runner(request.getfixturevalue("interpreter") if request.param == "interpreter" else None)


class Guarded:
    """A contiguous tensor between two guard bands."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: str, band: float) -> None:
        size = torch.Size(shape).numel()
        self.whole = torch.full((size + 2 * GUARD,), band, dtype=dtype, device=device)
        self.band = self.whole[:GUARD].clone()
        self.inside = self.whole[GUARD : GUARD + size].view(shape)

    def assert_untouched(self, name: str) -> None:
        for side, band in (("before", self.whole[:GUARD]), ("behind", self.whole[-GUARD:])):
            written = int((band != self.band).sum())
            assert not written, f"{written} entries {side} {name} were written"


@pytest.fixture
def guarded(run: Runner) -> Callable[..., Guarded]:
    """guarded(shape, dtype, band): a tensor where `run` computes, with bands full of the value `band`."""
    return lambda shape, dtype, band: Guarded(shape, dtype, run.device, band)


@pytest.fixture
def assert_rounded(run: Runner) -> Callable[..., None]:
    """assert_rounded(packed, y, scheme, clip=1.0, precision=...): scale, zero and codes are those of float64 y.

    precision: what the scale may be off, relatively, and a code in steps; a GPU that rounds to bfloat16 between two
    products gets 0.05. The default is float32 arithmetic's, 1e-4.
    """

    def check(packed: Any, y: Tensor, scheme: str, clip: float | Tensor = 1.0, precision: float = 1e-4) -> None:
        low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
        q, s = packed.codes.double(), packed.scale.double()
        if scheme == "asymmetric":
            expected = clip * (high.clamp_min(0) - low.clamp_max(0)) / 15
            zero = -low.clamp_max(0) * clip / expected
            assert float((packed.zero.double() - zero).abs().max()) <= 0.5 + 15 * precision
            v, low_code, high_code = y / s + packed.zero.double(), 0, 15
        else:
            expected = clip * torch.maximum(-low, high) / (7 if scheme == "symmetric" else 7.5)
            v, low_code, high_code = y / s - (0.5 if scheme == "midrise" else 0), -8, 7
        assert float((s / expected - 1).abs().max()) <= precision, "a scale is wrong"
        off = float((q - v.clamp(low_code, high_code)).abs().max())
        assert off <= 0.5 + 10 * precision, f"a code is {off:.3g} steps from its entry"

    return check
