"""What quantizing takes: seconds, their split and peak memory, as ratios to SingleQuant."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from sq.analysis.tables.cells import OURS, lines, without_model
from sq.analysis.tables.protocol import describe
from sq.analysis.tables.published_block import published_table
from sq.analysis.tables.select import compared
from sq.analysis.tables.table import Table

PARTS = ("capture", "transform", "weights")
FORMATS = {
    "runs": "{:.0f}",
    "seconds": "{:.2f}",
    "ratio": "{:.2f}",
    **{f"{part} s": "{:.2f}" for part in PARTS},
    "peak MB": "{:.0f}",
    "memory ratio": "{:.2f}",
}


def table_time(frame: pd.DataFrame, *, base: str = OURS, published: bool = False, **which: Any) -> Table:
    """Medians over seeds of runs without an evaluation, whose memory and caches an evaluation has not touched.

    Args:
        frame: of `sq.analysis.load` or `load_wandb`.
        base: method that times and memory are compared with.
        published: show published quantization times as well.
        which: experiment, overrides, column -> value: see `sq.analysis.tables.select.compared`.

    Raises:
        MissingRuns: no timed run.
        DataError: runs of different settings or machines.
    """
    runs = compared(frame, "table_time", which, task="none", metric="quantize", several=["seed"], times=True)
    rows: list[dict[str, Any]] = []
    for model, name in lines(runs):
        bases = runs[(runs["model"] == model) & (runs["method"] == base)]
        rows.append(
            {"model": model, "method": name, **_cells(runs[(runs["model"] == model) & (runs["row"] == name)], bases)}
        )
    rows.sort(key=lambda row: (row["model"], isinstance(row["seconds"], str), row["seconds"]))
    models = list(dict.fromkeys(runs["model"]))
    undone = Counter(runs.loc[runs["status"] == "missing", "row"])
    lost = "".join(f" {name}: {count} missing." for name, count in undone.items())
    return Table(
        without_model(rows),
        title=f"Quantization time and peak memory, {', '.join(models)}",
        note=f"{describe(runs)}. Medians over seeds; ratios to {base}; 1 MB = 10^6 bytes.{lost}",
        formats=FORMATS,
        published=published_table(["quantize/minutes", "quantize/gpu_hours"], None, models) if published else None,
    )


def _cells(runs: pd.DataFrame, bases: pd.DataFrame) -> dict[str, Any]:
    done = runs[runs["status"] == "finished"]
    if done.empty:
        shown = "failed" if (runs["status"] == "failed").any() else "missing"
        return {"runs": 0, **dict.fromkeys(list(FORMATS)[1:], shown)}
    own, base = done.median(numeric_only=True), bases[bases["status"] == "finished"].median(numeric_only=True)
    seconds, memory = "quantize/seconds", "quantize/peak_memory_bytes"
    return {
        "runs": len(done),
        "seconds": float(own[seconds]),
        "ratio": float(own[seconds]) / float(base.get(seconds, float("nan"))),
        **{f"{part} s": float(own[f"quantize/{part}_seconds"]) for part in PARTS},
        "peak MB": float(own[memory]) / 1e6,
        "memory ratio": float(own[memory]) / float(base.get(memory, float("nan"))),
    }
