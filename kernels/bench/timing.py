"""How a case is timed: CUDA graphs over rotating operands, medians. A timer is a function, so tests bring their own."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

from .case import Case, Place

_LATENCY_COPIES = 1024  # of operands that are so small that no number of them leaves the L2 cache soon
_MOST_CALLS = 4096  # in a graph
_LEAST_GRAPH = 2e-3  # seconds of one replay: its launch and the events around it cost microseconds
_SAMPLES, _MOST_SAMPLES = 5, 50  # at a time, and in all


class Timing(NamedTuple):
    """Seconds of one call."""

    seconds: float  # the median of the samples
    low: float  # their 20th percentile
    high: float  # their 80th percentile
    samples: int  # replays that were timed
    copies: int  # sets of operands that were rotated


Timer = Callable[[Case, Place], Timing]


class GraphTimer:
    """Medians of a CUDA graph that goes through enough sets of operands to read them from memory (README.md).

    `cuda` is torch.cuda; `seconds` that a case may take, at the least five samples, or None for 50 samples.
    """

    def __init__(self, cuda: Any, l2_bytes: int, seconds: float | None = None) -> None:
        self.cuda, self.l2_bytes, self.seconds = cuda, l2_bytes, seconds

    def __call__(self, case: Case, place: Place) -> Timing:
        """Make the operands, tune, capture, replay. Raises what the case raises."""
        start = time.perf_counter()
        copies = min(_LATENCY_COPIES, 4 * self.l2_bytes // max(1, case.bytes) + 1)
        calls = [case.make(place, 1000 * i) for i in range(copies)]
        for call in calls:  # compiles and tunes, which no capture may
            call()
        self.cuda.synchronize()
        graph, rounds = self._captured(calls, 1), 1
        once = self._replayed(graph, 1)[0]
        if once < _LEAST_GRAPH and (more := min(math.ceil(_LEAST_GRAPH / once), _MOST_CALLS // copies)) > 1:
            graph, rounds = self._captured(calls, more), more
        samples: list[float] = []
        while not samples or (
            len(samples) < _MOST_SAMPLES and (self.seconds is None or time.perf_counter() - start < self.seconds)
        ):
            samples += [seconds / (rounds * copies) for seconds in self._replayed(graph, _SAMPLES)]
        fifths = statistics.quantiles(samples, n=5)
        return Timing(statistics.median(samples), fifths[0], fifths[-1], len(samples), copies)

    def _captured(self, calls: list[Callable[[], Any]], rounds: int) -> Any:
        graph = self.cuda.CUDAGraph()
        with self.cuda.graph(graph):
            for _ in range(rounds):
                for call in calls:
                    call()
        return graph

    def _replayed(self, graph: Any, count: int) -> list[float]:
        """Seconds of `count` replays by the device's clock, behind one that keeps it busy while they queue up."""
        marks = [self.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        graph.replay()
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        self.cuda.synchronize()
        return [float(a.elapsed_time(b)) / 1e3 for a, b in pairwise(marks)]


def called_once(case: Case, place: Place) -> Timing:
    """A timer that times nothing: one call, which compiles, tunes and fails where the real one would."""
    case.make(place, 0)()
    return Timing(math.nan, math.nan, math.nan, 0, 1)


def emptied(cuda: Any) -> None:
    """Give the memory of a case back before the next one."""
    if cuda.is_available():
        gc.collect()
        cuda.synchronize()
        cuda.empty_cache()
