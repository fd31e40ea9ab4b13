"""What quantizing takes: seconds, their split and peak memory, as ratios to SingleQuant."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pandas as pd

from sq.analysis.tables.cells import Cell, Value
from sq.analysis.tables.declaration import METHOD, OURS, Declaration
from sq.analysis.tables.table import Column

SECONDS, MEMORY = "quantize/seconds", "quantize/peak_memory_bytes"


def _median(name: str, cell: Cell, unit: float = 1.0) -> Value:
    """The median of the finished runs; where there are none, whether they failed or are missing."""
    done = _finished(cell.row)
    if done.empty:
        return "failed" if (cell.row["status"] == "failed").any() else "missing"
    return float(done[name].median()) / unit


def _ratio(name: str, cell: Cell) -> Value:
    own = _median(name, cell)
    return own / float(_finished(cell.bases)[name].median()) if isinstance(own, float) else own


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
    sort=partial(_median, SECONDS),
    columns=(
        METHOD,
        Column("runs", lambda cell: len(_finished(cell.row)), "{:.0f}"),
        Column("seconds", partial(_median, SECONDS), "{:.2f}"),
        Column("ratio", partial(_ratio, SECONDS), "{:.2f}"),
        *(Column(f"{part} s", partial(_median, f"quantize/{part}_seconds"), "{:.2f}")
          for part in ("capture", "transform", "weights")),
        Column("peak MB", partial(_median, MEMORY, unit=1e6), "{:.0f}"),
        Column("memory ratio", partial(_ratio, MEMORY), "{:.2f}"),
    ),
    title="Quantization time and peak memory, {models}",
    note="Medians over seeds; ratios to {base}; 1 MB = 10^6 bytes.",
    remark=_missing,
    published=("quantize/minutes", "quantize/gpu_hours"),
)  # fmt: skip
