"""Which of several ways to compute the same is the fastest, timed once and stored as tuned launches are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import autotune

_chosen: dict[tuple[Any, ...], int] = {}


def fastest(name: str, key: Mapping[str, Any], calls: Sequence[Callable[[], Any]]) -> int:
    """Index of the fastest call for these key values: the stored one, else as timed now, whole calls with a cold L2.

    Each call is repeated, so it must write nothing that it reads. One that runs out of memory is not chosen, which is
    warned of. Within a `tuning_limit` the choice holds for this process and is not stored. Raises ValueError where the
    store's file is damaged, foreign or of another version.
    """
    known = (name, torch.cuda.current_device() if torch.cuda.is_available() else None, *key.items())
    if known not in _chosen:
        _chosen[known] = _stored_or_timed(name, key, calls)
    return _chosen[known]


def _stored_or_timed(name: str, key: Mapping[str, Any], calls: Sequence[Callable[[], Any]]) -> int:
    store = autotune.store()
    launch = store.find(name, key)
    if launch is not None:
        if not 1 <= launch.get("CHOICE", 0) <= len(calls):
            raise store.refuse(name, launch, len(calls))
        return launch["CHOICE"] - 1
    times = [_milliseconds(name, call) for call in calls]
    best = min(range(len(calls)), key=times.__getitem__)
    if not autotune.limited():
        store.add(name, key, {"CHOICE": best + 1}, 1000 * times[best])
    return best


def _milliseconds(name: str, call: Callable[[], Any]) -> float:
    try:
        return autotune.benchmark(call, (0.5,))[0]
    except torch.OutOfMemoryError as error:
        warnings.warn(f"a way to compute {name} was not timed, it is out of memory: {error}", stacklevel=2)
        return float("inf")
