"""The next layer is read while the first is worked on, and nothing else changes."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from sq.errors import CheckpointError
from sq.models.prefetch import Prefetch

CPU = torch.device("cpu")


class Reader:
    """Layers of one tensor; says which were read, and where."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken, self.read, self.threads = broken, list[int](), set[str]()
        self.done = threading.Condition()

    def __call__(self, index: int) -> dict[str, Tensor]:
        with self.done:
            self.read.append(index)
            self.threads.add(threading.current_thread().name)
            self.done.notify_all()
        if index == self.broken:
            raise CheckpointError(f"layer {index} is damaged")
        return {"weight": torch.full((2,), float(index))}

    def wait_for(self, count: int) -> bool:
        with self.done:
            return self.done.wait_for(lambda: len(self.read) >= count, timeout=10)


def test_the_next_layer_is_read_before_it_is_asked_for() -> None:
    reader = Reader()
    ahead = Prefetch(reader, 3, CPU)
    assert float(ahead.get(0)["weight"][0]) == 0
    assert reader.wait_for(2), "nobody read layer 1"
    assert [float(ahead.get(index)["weight"][0]) for index in (1, 2)] == [1, 2]
    assert reader.read == [0, 1, 2], "each once, none behind the last"
    assert len(reader.threads) == 2


def test_any_order() -> None:
    reader = Reader()
    ahead = Prefetch(reader, 4, CPU)
    assert [float(ahead.get(index)["weight"][0]) for index in (0, 3, 3, 1, 2)] == [0, 3, 3, 1, 2]


def test_an_error_comes_where_the_layer_is_asked_for() -> None:
    ahead = Prefetch(Reader(broken=1), 3, CPU)
    ahead.get(0)
    with pytest.raises(CheckpointError, match="layer 1 is damaged"):
        ahead.get(1)
    assert float(ahead.get(2)["weight"][0]) == 2
