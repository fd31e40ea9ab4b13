"""The table of results that `python run.py` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sq.runs.results import Result, flat
from sq.runs.speed_table import speed_tables

# Settings that other columns show, or that do not change a result.
SHOWN = ("bits", "paths.", "tracker.", "model.", "task.")
HIDDEN = ("force", "executor", "reference_methods", "method._target_", "method.quantizes")


def print_results(results: Iterable[Result], *, title: str | None = None, console: Console | None = None) -> None:
    """Print one table with a row for each distinct run, then the reason of every failure."""
    rows = list({result.run_id: result for result in results}.values())
    tables = [results_table(rows, title=title), *speed_tables(rows)]
    if console is None:
        console = Console()
        if not console.is_terminal:  # a pipe or a log has no width of its own: never fold the tables
            console = Console(width=max(80, *(Console(width=1000).measure(table).maximum for table in tables)))
    console.print(*tables)
    for row in rows:
        if row.status == "failed":
            console.print(Text(f"{row.run_id} failed: {row.error}"))


def results_table(rows: Sequence[Result], *, title: str | None = None) -> Table:
    """One row a run, without the columns in which no row has a value."""
    texts = sorted({key.split("/", 1)[1] for row in rows for key in row.metrics if key.startswith("ppl/")})
    columns: list[tuple[str, Literal["left", "right"], list[str]]] = []
    if len({row.model for row in rows}) > 1:
        columns.append(("model", "left", [row.model for row in rows]))
    columns.append(("method", "left", [row.shown_method for row in rows]))
    for name in ("bits", "weights", "activations"):
        columns.append((name, "left", [_dash(getattr(row, name)) for row in rows]))
    if any(row.arithmetic == "packed" for row in rows):
        columns.append(("arithmetic", "left", [_dash(row.arithmetic) for row in rows]))
    for key in varying_settings(rows):
        columns.append((key.removeprefix("method."), "right", [_setting(row, key) for row in rows]))
    for text in texts:
        mark = f" {text}" if len(texts) > 1 else ""
        columns.append((f"ppl{mark}", "right", [_number(row, f"ppl/{text}", "{:.3f}") for row in rows]))
        columns.append((f"KL{mark}", "right", [_number(row, f"kl/{text}", "{:.4f}") for row in rows]))
        columns.append((f"top-1{mark}", "right", [_number(row, f"top1/{text}", "{:.1%}") for row in rows]))
    for key in sorted({key for row in rows for key in row.metrics if key.startswith("acc/")}):
        columns.append((key.replace("/", " "), "right", [_number(row, key, "{:.1%}") for row in rows]))
    columns += [
        ("bits/\nweight", "right", [_number(row, "model/bits_per_weight", "{:.2f}") for row in rows]),
        ("online\nMAC/token", "right", [_number(row, "transform/multiply_adds", "{:,.0f}") for row in rows]),
        ("quantize s =\ncapture+transform+weights", "right", [_seconds(row) for row in rows]),
        ("peak\nmemory", "right", [_bytes(row, "quantize/peak_memory_bytes") for row in rows]),
        ("model\nsize", "right", [_bytes(row, "model/bytes") for row in rows]),
    ]
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    kept = [column for column in columns if any(cell != "-" for cell in column[2])]
    for head, justify, _ in kept:
        table.add_column(head, justify=justify, overflow="fold")
    first = next((index for index, column in enumerate(kept) if column[1] == "right"), None)
    for index, row in enumerate(rows):
        cells = [column[2][index] for column in kept]
        failed = row.status == "failed"
        if failed and first is not None:
            cells[first] = "failed"
        table.add_row(*cells, style="red" if failed else None)
    return table


def varying_settings(rows: Sequence[Result]) -> list[str]:
    """Dotted settings that differ between rows of one method and model and that no other column shows.

    Of settings that always change together (calibration.seed follows seed) it returns the one with the shortest path.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row.method, row.model), []).append(flat(row.config))
    found: list[str] = []
    for group in groups.values():
        for key in sorted({key for config in group for key in config}, key=lambda key: (key.count("."), key)):
            if key.startswith(SHOWN) or key in HIDDEN or key.endswith(".name") or key in found:
                continue
            values = [str(config.get(key)) for config in group]
            repeats = any([str(config.get(other)) for config in group] == values for other in found)
            if len(set(values)) > 1 and not repeats and not _implied(group, key):
                found.append(key)
    return found


def _implied(group: Sequence[dict[str, Any]], key: str) -> bool:
    """Whether the section's name alone tells the value (weights=gptq also changes weights.block: nothing new)."""
    section = key.split(".")[0]
    pairs = {(str(config.get(f"{section}.name")), str(config.get(key))) for config in group}
    return section in ("weights", "activations") and len({name for name, _ in pairs}) == len(pairs)


def _setting(row: Result, key: str) -> str:
    if row.weights == "none" and not key.startswith("method."):
        return "-"  # nothing was quantized: the setting did not matter
    value = flat(row.config).get(key)
    return _dash(str(value).lower() if isinstance(value, bool) else value)


def _number(row: Result, key: str, form: str) -> str:
    value = row.metrics.get(key, "absent")
    return "-" if value == "absent" else "nan" if value is None else form.format(value)


def _seconds(row: Result) -> str:
    total = _number(row, "quantize/seconds", "{:.2f}")
    parts = [_number(row, f"quantize/{part}_seconds", "{:.2f}") for part in ("capture", "transform", "weights")]
    return total if total == "-" else f"{total} = {'+'.join(parts)}"


def _bytes(row: Result, key: str) -> str:
    """Decimal prefixes: 1 MB = 10^6 bytes."""
    value = row.metrics.get(key)
    if value is None:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:.0f} {unit}"
    return f"{value:.0f} B"


def _dash(value: object) -> str:
    return "-" if value in (None, "none", "") else str(value)
