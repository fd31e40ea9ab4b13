"""The benchmark's timer on a made-up device: graphs record calls, events read a clock that calls move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sq.kernels.bench.case import Case, Place
from sq.kernels.bench.timing import GraphTimer

TORCH = Place("cpu", "torch")


class FakeCuda:
    """torch.cuda with a clock that calls move: graphs record them, events read it."""

    def __init__(self) -> None:
        self.clock = 0.0  # ms
        self.recording: list[Callable[[], None]] | None = None
        self.captures: list[int] = []

    def work(self, milliseconds: float) -> None:
        if self.recording is not None:
            self.recording.append(lambda: self.work(milliseconds))
        else:
            self.clock += milliseconds

    def synchronize(self) -> None:
        assert self.recording is None, "a capture must not synchronize"

    def CUDAGraph(self) -> Any:
        class Graph(list[Callable[[], None]]):
            def replay(self) -> None:
                for node in self:
                    node()

        return Graph()

    @contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.recording = graph
        yield
        self.recording = None
        self.captures.append(len(graph))

    def Event(self, enable_timing: bool) -> Any:
        cuda = self

        class Event:
            def record(self) -> None:
                self.at = cuda.clock

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at)

        return Event()


@pytest.mark.parametrize(
    ("size", "milliseconds", "copies", "captures"),
    [
        (10_000, 0.004, 1024, [1024]),  # 4 ms of 1,024 sets
        (1_000, 0.001, 1024, [1024, 2048]),  # 1 ms: two rounds
        (8_000_000, 0.01, 31, [31, 217]),  # 30 sets are four times 60 MB, one more is beyond; 0.31 ms: seven rounds
        (500_000_000, 5.0, 1, [1]),
    ],
)
def test_the_timer_rotates_operands_and_fills_a_graph(
    size: int, milliseconds: float, copies: int, captures: list[int]
) -> None:
    cuda, made = FakeCuda(), []

    def make(place: Place, seed: int) -> Callable[[], Any]:
        made.append(seed)
        return lambda: cuda.work(milliseconds)

    got = GraphTimer(cuda, 60_000_000)(Case("case", make, size), TORCH)
    assert got.seconds == pytest.approx(milliseconds / 1e3)
    assert (got.low, got.high) == (pytest.approx(got.seconds), pytest.approx(got.seconds))
    assert (got.samples, got.copies) == (50, copies)
    assert len(set(made)) == copies, "sets of operands share their numbers"
    assert cuda.captures == captures


def test_the_timer_takes_the_median_and_keeps_to_its_seconds() -> None:
    cuda, calls = FakeCuda(), 0

    def make(place: Place, seed: int) -> Callable[[], Any]:
        def run() -> None:
            nonlocal calls
            calls += 1
            cuda.work(5.0)

        return run

    case = Case("case", make, 10**9)
    assert GraphTimer(cuda, 1, seconds=0.0)(case, TORCH).samples == 5
    ticks = iter([5.0, 5.0, 5.0, 1.0, 5.0, 900.0, 5.0, 5.0])
    cuda.work = lambda milliseconds: (  # type: ignore[method-assign]
        cuda.recording.append(lambda: setattr(cuda, "clock", cuda.clock + next(ticks)))
        if cuda.recording is not None
        else None
    )
    got = GraphTimer(cuda, 1, seconds=0.0)(case, TORCH)
    assert got.seconds == pytest.approx(5e-3)
    assert got.high > 0.5
