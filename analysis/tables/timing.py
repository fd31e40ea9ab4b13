"""What quantizing takes: seconds, their split and peak memory, as ratios to SingleQuant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pandas as pd

from sq.analysis.tables.cells import Cell, Value
from sq.analysis.tables.declaration import METHOD, OURS, Declaration
from sq.analysis.tables.table import Column

SECONDS, MEMORY = "quantize/seconds", "quantize/peak_memory_bytes"


def _median(name: str, unit: float = 1.0) -> Callable[[Cell], Value]:
    """The median of the finished runs; where there are none, whether they failed or are missing."""

    def shown(cell: Cell) -> Value:
        done = _finished(cell.row)
        if done.empty:
            return "failed" if (cell.row["status"] == "failed").any() else "missing"
        return float(done[name].median()) / unit

    return shown


def _ratio(name: str) -> Callable[[Cell], Value]:
    def shown(cell: Cell) -> Value:
        own = _median(name)(cell)
        return own / float(_finished(cell.bases)[name].median()) if isinstance(own, float) else own

    return shown


def _finished(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["status"] == "finished"]


def _missing(runs: pd.DataFrame) -> str:
    undone = Counter(runs.loc[runs["status"] == "missing", "row"])
    return " ".join(f"{name}: {count} missing." for name, count in undone.items())


TIME = Declaration(
    experiment="table_time",
    task="none",
    metric="quantize",
    several=["seed"],
    base=OURS,
    sort=_median(SECONDS),
    columns=(
        METHOD,
        Column("runs", lambda cell: len(_finished(cell.row)), "{:.0f}"),
        Column("seconds", _median(SECONDS), "{:.2f}"),
        Column("ratio", _ratio(SECONDS), "{:.2f}"),
        *(Column(f"{part} s", _median(f"quantize/{part}_seconds"), "{:.2f}")
          for part in ("capture", "transform", "weights")),
        Column("peak MB", _median(MEMORY, 1e6), "{:.0f}"),
        Column("memory ratio", _ratio(MEMORY), "{:.2f}"),
    ),
    title="Quantization time and peak memory, {models}",
    note="Medians over seeds; ratios to {base}; 1 MB = 10^6 bytes.",
    remark=_missing,
    published=("quantize/minutes", "quantize/gpu_hours"),
)  # fmt: skip
