"""The table of speeds that `python run.py task=speed` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from sq.runs.results import Result

PHASES = ("prefill", "decode")


def speed_tables(rows: Sequence[Result]) -> list[Table]:
    """Tokens per second of each run's kinds of weights, with the ratio to bf16 in the same run: one table, or none."""
    measured = [row for row in rows if row.extras.get("speed")]
    if not measured:
        return []
    batches = sorted({batch for row in measured for batch in row.extras["speed"]["batches"]})
    about = [_conditions(row) for row in measured]
    table = Table(title="; ".join(dict.fromkeys(about)), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for head in ("model", "method", "kind"):
        table.add_column(head, overflow="fold")
    rates_heads = [f"{phase} tok/s\nbatch {batch}" for phase in PHASES for batch in batches]
    for head in (*rates_heads, "linears\nMB", "all weights\nMB"):
        table.add_column(head, justify="right")
    for row in measured:
        for kind in row.extras["speed"]["kinds"]:
            rates = [_rate(row, f"speed/{phase}/{{}}/b{batch}", kind) for phase in PHASES for batch in batches]
            sizes = [_megabytes(row, f"speed/{part}_bytes/{kind}") for part in ("linear", "weight")]
            table.add_row(row.model, row.method, kind, *rates, *sizes)
    return [table]


def _conditions(row: Result) -> str:
    facts = row.extras["speed"]
    weights = ", random weights" if facts["random_weights"] else ""
    return f"{facts['device']}{weights}: prompt {facts['prompt']}, then {facts['new_tokens']} tokens, one by one"


def _rate(row: Result, key: str, kind: str) -> str:
    rate, full = row.metrics.get(key.format(kind)), row.metrics.get(key.format("bf16"))
    if rate is None:
        return "-"
    ratio = "" if not full or kind == "bf16" else f" ({rate / full:.2f}x)"
    return f"{rate:,.0f}{ratio}"


def _megabytes(row: Result, key: str) -> str:
    value = row.metrics.get(key)
    return "-" if value is None else f"{value / 1e6:,.1f}"
