"""What quantizing takes: seconds, their split and peak memory, as ratios to SingleQuant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sq.analysis.expected import command as makes
from sq.analysis.expected import of_experiment
from sq.analysis.results import MissingRuns
from sq.analysis.tables.cells import OURS, lines, without_model
from sq.analysis.tables.protocol import describe, measured, one_protocol
from sq.analysis.tables.published_block import published_table
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


def table_time(
    frame: pd.DataFrame,
    *,
    experiment: str | None = "table_time",
    overrides: Sequence[str] = (),
    base: str = OURS,
    published: bool = False,
    **columns: str,
) -> Table:
    """Medians over seeds of runs without an evaluation, whose memory and caches an evaluation has not touched.

    Args:
        frame: of `sq.analysis.load` or `load_wandb`.
        experiment: whose runs are shown, missing ones as such; None = all of the frame.
        overrides: that the experiment was run with, such as "model=llama2_7b".
        base: method that times and memory are compared with.
        published: show published quantization times as well.
        columns: column -> value, to choose among settings where the frame has several.

    Raises:
        MissingRuns: no timed run.
        DataError: runs of different settings or machines.
    """
    frame = frame if experiment is None else of_experiment(frame, experiment, overrides)
    runs = measured(frame[frame["weights"] != "none"], "none")
    if not (runs["status"] == "finished").any():
        raise MissingRuns("no run was timed without an evaluation", makes(experiment or "table_time", overrides))
    runs = one_protocol(runs, columns, task="none", several=["seed"], times=True)
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
