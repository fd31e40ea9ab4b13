"""All methods side by side as Markdown: quality at every bit-width, or the time and memory that quantizing takes.

    python -m sq.analysis.comparison runs                        # KL from full precision (table=quality)
    python -m sq.analysis.comparison runs metric=ppl             # perplexity
    python -m sq.analysis.comparison runs table=time             # seconds and peak memory, ratios to SingleQuant

Rows come from `python run.py -m experiment=comparison` and `experiment=table_time`; nothing else is read.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from sq.analysis.markdown import main, markdown
from sq.analysis.results import chosen, load
from sq.errors import DataError

OURS = "singlequant"
TEXT = "embedded"
FIXED = {"model": "tiny", "model.outliers": "planted", "activations": "symmetric"}
FORMATS = {"kl": "{:.4f}", "ppl": "{:.3f}", "top1": "{:.3f}"}


def comparison_table(results: str | Path, *, table: str = "quality", metric: str = "kl", **settings: str) -> str:
    """A table of all methods that have finished runs under one setting of everything else.

    Args:
        results: folder of run directories.
        table: "quality" or "time".
        metric: of "quality": "kl", "ppl" or "top1".
        settings: column -> value, where it differs from `FIXED`; values are compared as text.

    Raises:
        DataError: nothing to show, runs of different settings where one is wanted, or an unknown table or metric.
    """
    if table not in ("quality", "time") or metric not in FORMATS:
        raise DataError(f"table={table}, metric={metric}; allowed: table=quality|time, metric={'|'.join(FORMATS)}")
    runs = load(results)
    runs = chosen(runs[runs["method"] != "fp16"], {**FIXED, **settings})
    return _time(runs) if table == "time" else _quality(runs, metric)


def _quality(runs: pd.DataFrame, metric: str) -> str:
    column = f"{metric}/{TEXT}"
    if column not in runs or runs[column].isna().all():
        raise DataError(f"no run has {column}; `python run.py -m experiment=comparison` makes them")
    runs = runs[(runs["status"] == "failed") | runs[column].notna()]
    for setting in ("task.perplexity.count", "calibration.tokens", "seed"):
        if (found := sorted(runs[setting].dropna().unique())) and len(found) > 1:
            raise DataError(f"runs with {setting} of {', '.join(map(str, found))}; choose one: {setting}=VALUE")
    bits = sorted(runs["bits"].unique(), key=_numbers)
    columns = [(label, weights) for label in bits for weights in ("rtn", "gptq")]
    heads = ["method", *(f"{label} {weights.upper()}" for label, weights in columns)]
    runs = runs.assign(row=runs.apply(_row_name, axis=1)).sort_values("created")
    first = {name: place for place, name in enumerate(dict.fromkeys(runs["method"]))}
    names = {str(run["row"]): (first[run["method"]], _training(run)[0]) for _, run in runs.iterrows()}
    rows = []
    for name in sorted(names, key=lambda row: names[row]):
        cells = [name]
        for label, weights in columns:
            found = runs[(runs["row"] == name) & (runs["bits"] == label) & (runs["weights"] == weights)]
            cells.append(_cell(found, column, FORMATS[metric]))
        rows.append(cells)
    return markdown(heads, rows)


def _row_name(run: pd.Series) -> str:
    """A learned method with its training: the same one trained longer is a row of its own."""
    amount, unit = _training(run)
    return f"{run['method']}, {amount:.0f} {unit}" if unit else str(run["method"])


def _training(run: pd.Series) -> tuple[float, str]:
    for unit in ("epochs", "steps"):
        if pd.notna(amount := run.get(f"method.{unit}")):
            return float(amount), unit
    return 0.0, ""


def _numbers(label: str) -> list[int]:
    """W4A4KV16, W4A4KV4, W4A8KV16, W4A16KV16: fewer bits first, the cache the other way round."""
    weights, activations, *inside = (int(number) for number in re.findall(r"\d+", label))
    return [weights, activations, *(-number for number in inside)]


def _cell(found: pd.DataFrame, column: str, shape: str) -> str:
    """The newest run's number; a failed one is shown as such, a missing one is a blank."""
    if found.empty:
        return ""
    row = found.sort_values("created").iloc[-1]
    return "failed" if row["status"] == "failed" else shape.format(row[column])


def _time(runs: pd.DataFrame) -> str:
    """Medians over runs without an evaluation, whose memory and cache an evaluation has not touched."""
    runs = runs[(runs["status"] == "finished") & (runs["task.name"] == "none")]
    ours = runs[runs["method"] == OURS]
    if ours.empty:
        raise DataError(f"no timed run of {OURS!r}; `python run.py -m experiment=table_time` makes all of them")
    heads = ["method", "runs", "seconds", "ratio", "capture", "transform", "weights", "peak memory", "ratio"]
    base = ours.median(numeric_only=True)
    rows = []
    medians = {name: group.median(numeric_only=True) for name, group in runs.groupby("method")}
    for name, row in sorted(medians.items(), key=lambda item: float(item[1]["quantize/seconds"])):
        seconds, memory = float(row["quantize/seconds"]), float(row["quantize/peak_memory_bytes"])
        rows.append(
            [
                str(name),
                str(int((runs["method"] == name).sum())),
                f"{seconds:.2f}",
                f"{seconds / float(base['quantize/seconds']):.2f}",
                *(f"{float(row[f'quantize/{part}_seconds']):.2f}" for part in ("capture", "transform", "weights")),
                f"{memory / 1e6:.0f} MB",
                f"{memory / float(base['quantize/peak_memory_bytes']):.2f}",
            ]
        )
    return markdown(heads, rows)


if __name__ == "__main__":
    main(comparison_table, sys.argv[1:])
