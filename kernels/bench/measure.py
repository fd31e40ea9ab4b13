"""From rows to results: every case timed once, ratios, verdicts; what fails becomes a failed row with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .case import Case, Place, Row
from .targets import TARGETS, verdict
from .timing import Timer, Timing

Result = dict[str, Any]
_RATIOS = {
    "rate": "",
    "bandwidth": "of copy bandwidth",
    "speedup": "x as fast",
    "extra": "of the time more",
    "latency": "us",
    "memory": "x smaller",
}


def measure(
    rows: Sequence[Row], place: Place, timer: Timer, *, between: Callable[[], None] = lambda: None
) -> Iterator[Result]:
    """One result a row, in order, as soon as it is there.

    Args:
        between: called behind every case that was timed, to give its memory back.

    Yields dicts with row, kind, status "ok" or "failed", reason; measured and yardstick, each with its unit; ratio, its
    unit, floor, moon and verdict ("met moon", "met floor", "below", "" without a target); and under "case" and
    "against" what was timed: name, bytes, flops and the timing.
    """
    done: dict[str, Timing | str] = {}

    def timed(case: Case) -> Timing | str:
        if case.name not in done:
            try:
                done[case.name] = timer(case, place)
            except Exception as error:  # whatever a kernel fails with, the other rows are wanted
                done[case.name] = _reason(error)
            between()
        return done[case.name]

    for row in rows:
        yield _result(row, timed)


def _result(row: Row, timed: Callable[[Case], Timing | str]) -> Result:
    target = None if row.target is None else TARGETS.get(row.target)
    result: Result = {"row": row.name, "kind": row.kind, "status": "ok", "reason": None}
    result |= dict.fromkeys(("measured", "unit", "against", "yardstick", "yardstick_unit", "ratio"))
    result |= {"ratio_unit": _RATIOS[row.kind], "floor": target and target.floor, "moon": target and target.moon}
    result |= {"better": target and ("higher" if target.higher else "lower"), "verdict": ""}
    counted = row.kind == "memory"
    for name, case in (("case", row.case), ("against", row.yardstick)):
        if case is None:
            continue
        timing = None if counted else timed(case)
        result[name] = {"name": case.name, "bytes": case.bytes, "flops": case.flops}
        if isinstance(timing, str) and result["status"] == "ok":
            result |= {"status": "failed", "reason": timing if case is row.case else f"{case.name}: {timing}"}
        elif isinstance(timing, Timing):
            result[name] |= timing._asdict()
    if result["status"] == "failed":
        return result
    times = [None if result[name] is None else result[name].get("seconds") for name in ("case", "against")]
    result["measured"], result["unit"] = _shown(row, row.case, times[0])
    if row.yardstick is not None:
        result["yardstick"], result["yardstick_unit"] = _shown(row, row.yardstick, times[1])
    ratio = _ratio(row, *times)
    if ratio is not None and not math.isnan(ratio):
        result |= {"ratio": ratio, "verdict": verdict(ratio, target)}
    return result


def _ratio(row: Row, mine: float | None, other: float | None) -> float | None:
    if row.kind == "memory" and row.yardstick is not None:
        return row.yardstick.bytes / row.case.bytes
    if mine is None:
        return None
    if row.kind == "latency":
        return 1e6 * mine
    if row.yardstick is None or other is None:
        return None
    if row.kind == "bandwidth":
        return row.case.bytes / mine / (row.yardstick.bytes / other)
    return mine / other - 1 if row.kind == "extra" else other / mine


def _shown(row: Row, case: Case, seconds: float | None) -> tuple[float | None, str]:
    """What the table shows of a case: GB, TFLOP/s, TB/s or microseconds."""
    if row.kind == "memory":
        return case.bytes / 1e9, "GB"
    if seconds is None:
        return None, ""
    if row.kind == "bandwidth" or (row.kind == "rate" and not case.flops):
        return case.bytes / seconds / 1e12, "TB/s"
    if row.kind == "rate":
        return case.flops / seconds / 1e12, "TFLOP/s"
    return 1e6 * seconds, "us"


def _reason(error: Exception) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
