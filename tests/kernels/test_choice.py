"""The fastest of several ways: timed once, stored, taken again; a fake clock, files in a folder of the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
KEY = {"T_BUCKET": 128, "D_IN": 64, "dtype": "torch.bfloat16"}


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, int]]]:
    """choose(milliseconds): the choice of a process of its own, and how many ways it timed."""
    from sq.kernels.tuned import autotune, choice, store

    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(store, "PACKAGED", tmp_path / "package")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA Fake 9000")
    monkeypatch.setattr(autotune.triton, "__version__", "9.9.9")
    timed: list[Any] = []

    def clock(call: Callable[[], Any], quantiles: Any) -> list[float]:
        timed.append(call)
        return [call()]

    monkeypatch.setattr(autotune, "benchmark", clock)

    def made(milliseconds: list[float | Exception], fresh: bool = True, **key: Any) -> tuple[int, int]:
        if fresh:
            autotune.store.cache_clear()
            choice._chosen.clear()
        timed.clear()

        def call(value: float | Exception) -> float:
            if isinstance(value, Exception):
                raise value
            return value

        calls = [lambda value=value: call(value) for value in milliseconds]
        return choice.fastest("form", KEY | key, calls), len(timed)

    yield made
    autotune.store.cache_clear()
    choice._chosen.clear()


def test_it_is_timed_once_and_the_next_process_takes_it(choose: Any, tmp_path: Path) -> None:
    assert choose([3.0, 1.0]) == (1, 2)
    assert choose([1.0, 3.0], fresh=False) == (1, 0)
    assert choose([1.0, 3.0]) == (1, 0), "a stored choice was timed again"
    assert choose([1.0, 3.0], T_BUCKET=256) == (0, 2), "another shape has a choice of its own"
    (path,) = tmp_path.glob("*.json")
    entries = json.loads(path.read_text())["entries"]
    assert {(e["key"]["T_BUCKET"], e["launch"]["CHOICE"], e["microseconds"]) for e in entries} == {
        (128, 2, 1000.0),
        (256, 1, 1000.0),
    }


def test_one_that_runs_out_of_memory_is_warned_of_and_not_chosen(choose: Any) -> None:
    with pytest.warns(UserWarning, match="a way to compute form was not timed, it is out of memory: full"):
        assert choose([torch.OutOfMemoryError("full"), 5.0]) == (1, 2)


def test_under_a_limit_of_time_it_holds_for_the_process_alone(choose: Any, tmp_path: Path) -> None:
    from sq.kernels.tuned.autotune import tuning_limit

    with tuning_limit(1.0):
        assert choose([3.0, 1.0]) == (1, 2)
        assert choose([1.0, 3.0], fresh=False) == (1, 0)
    assert list(tmp_path.glob("*.json")) == []
    assert choose([1.0, 3.0]) == (0, 2)


def test_a_stored_choice_that_does_not_exist_is_refused(choose: Any) -> None:
    choose([3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=r"none of its 2 candidates.*sq-bench --tune"):
        choose([3.0, 2.0])
