"""How far a benchmark is and how long it will take: rich's bar where rich is installed, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TypeVar

T = TypeVar("T")
_EVERY = 10.0  # seconds between two lines


def tracked(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass items on and show, on stderr, their number and the time left."""
    if find_spec("rich") is None or not sys.stderr.isatty():
        yield from _lines(items, total, what)
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, total=total, console=Console(stderr=True), transient=True)


def _lines(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    start = shown = time.perf_counter()
    for count, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if now - shown >= _EVERY or count == total:
            shown, left = now, (now - start) / count * (total - count)
            print(f"{what}: {count} of {total}, {now - start:.0f} s gone, about {left:.0f} s left", file=sys.stderr)
