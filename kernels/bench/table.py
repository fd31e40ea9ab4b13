"""Results as a table of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HEAD = ("", "measured", "yardstick", "ratio", "floor", "moon", "verdict")


def table(results: Sequence[dict[str, Any]]) -> str:
    """A line a row: measured, yardstick, ratio, floor, moon, verdict; every number says its unit."""
    lines = [_HEAD, *(_cells(result) for result in results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def text(line: tuple[str, ...]) -> str:
        cells = [cell.ljust(width) if i in (0, 6) else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        return "  ".join(cells).rstrip()

    return "\n".join([text(lines[0]), rule, *map(text, lines[1:])])


def summary(results: Sequence[dict[str, Any]]) -> str:
    """How many rows met what, and how many failed."""
    verdicts = [result["verdict"] for result in results if result["verdict"]]
    failed = sum(result["status"] == "failed" for result in results)
    met = sum(v != "below" for v in verdicts)
    text = f"{len(results)} rows; of {len(verdicts)} with a floor, {met} meet it and "
    return f"{text}{verdicts.count('met moon')} meet the stretch target; {failed} failed"


def _cells(result: dict[str, Any]) -> tuple[str, ...]:
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
