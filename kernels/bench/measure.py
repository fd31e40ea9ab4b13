"""From rows to results, and results as a table: every case timed once, ratios, verdicts; what fails says why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .case import Case, Place, Row
from .targets import TARGETS, verdict
from .timing import Timer, Timing

Result = dict[str, Any]
_HEAD = ("", "measured", "yardstick", "ratio", "floor", "moon", "verdict")
_RATIOS = {
    "rate": "", "bandwidth": "of copy bandwidth", "speedup": "x as fast", "extra": "of the time more", "latency": "us",
    "memory": "x smaller",
}  # fmt: skip


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
    shown: list[tuple[float, str]] = []
    times = []
    for name, case in (("case", row.case), ("against", row.yardstick)):
        if case is None:
            continue
        result[name] = {"name": case.name, "bytes": case.bytes, "flops": case.flops}
        timing = None if row.kind == "memory" else timed(case)
        if isinstance(timing, Timing):
            result[name] |= timing._asdict()
        elif timing is not None and result["status"] == "ok":
            result |= {"status": "failed", "reason": timing if case is row.case else f"{case.name}: {timing}"}
        times.append(timing.seconds if isinstance(timing, Timing) else math.nan)
        shown.append(_shown(row, case, times[-1]))
    if result["status"] == "failed":
        return result
    result["measured"], result["unit"] = shown[0]
    if row.yardstick is not None:
        result["yardstick"], result["yardstick_unit"] = shown[1]
    ratio = _ratio(row, *times)
    if not math.isnan(ratio):
        result |= {"ratio": ratio, "verdict": verdict(ratio, target)}
    return result


def _ratio(row: Row, mine: float, other: float = math.nan) -> float:
    """What Row's kinds say, of seconds; NaN for none."""
    if row.kind == "latency":
        return 1e6 * mine
    if row.yardstick is None:
        return math.nan
    if row.kind == "memory":
        return row.yardstick.bytes / row.case.bytes
    if row.kind == "bandwidth":
        return row.case.bytes / mine / (row.yardstick.bytes / other)
    return mine / other - 1 if row.kind == "extra" else other / mine


def _shown(row: Row, case: Case, seconds: float) -> tuple[float, str]:
    """What the table shows of a case: GB, TFLOP/s, TB/s or microseconds."""
    if row.kind == "memory":
        return case.bytes / 1e9, "GB"
    if row.kind == "rate" and case.flops:
        return case.flops / seconds / 1e12, "TFLOP/s"
    if row.kind in ("rate", "bandwidth"):
        return case.bytes / seconds / 1e12, "TB/s"
    return 1e6 * seconds, "us"


def _reason(error: Exception) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def table(results: Sequence[Result]) -> str:
    """A line a row: measured, yardstick, ratio, floor, moon, verdict; every number says its unit."""
    lines = [_HEAD, *(_cells(result) for result in results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def text(line: tuple[str, ...]) -> str:
        cells = [cell.ljust(width) if i in (0, 6) else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        return "  ".join(cells).rstrip()

    return "\n".join([text(lines[0]), rule, *map(text, lines[1:])])


def summary(results: Sequence[Result]) -> str:
    """How many rows met what, and how many failed."""
    verdicts = [result["verdict"] for result in results if result["verdict"]]
    failed = sum(result["status"] == "failed" for result in results)
    met = sum(v != "below" for v in verdicts)
    text = f"{len(results)} rows; of {len(verdicts)} with a floor, {met} meet it and "
    return f"{text}{verdicts.count('met moon')} meet the stretch target; {failed} failed"


def _cells(result: Result) -> tuple[str, ...]:
    if result["status"] == "failed":
        return (result["row"], "", "", "", "", "", f"FAILED {result['reason']}")
    unit = result["ratio_unit"]
    share = unit.startswith("of")  # of copy bandwidth, of the time: as percentages
    return (
        result["row"],
        _number(result["measured"], result["unit"]),
        _number(result["yardstick"], result["yardstick_unit"]),
        _number(result["ratio"], unit, share),
        _number(result["floor"], "", share),
        _number(result["moon"], "", share),
        result["verdict"],
    )


def _number(value: float | None, unit: str | None, share: bool = False) -> str:
    if value is None or value != value:
        return ""
    text = f"{value:.1%}" if share else f"{value:.4g}"
    return f"{text} {unit}".strip()
