"""The ablation table as Markdown: KL of each recipe, as a ratio to a randomized Hadamard at every site.

    python -m sq.analysis.ablation runs
    python -m sq.analysis.ablation runs model.outliers=none activations=midrise

Rows come from `python run.py -m experiment=ablation`; nothing else is read. Intervals: 95% paired bootstrap.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from sq.analysis.markdown import main, markdown
from sq.analysis.results import chosen, load, window_values
from sq.errors import DataError
from sq.evaluate.bootstrap import paired_ratio

BASE = "hadamard"
TEXT = "embedded"
# What conf/experiment/ablation.yaml holds fixed: runs with other settings may lie in the same folder.
FIXED = {
    "model": "tiny",
    "model.outliers": "planted",
    "bits": "W4A4KV16",
    "activations": "symmetric",
    "task.perplexity.count": "128",
    "seed": "0",
}


def ablation_table(results: str | Path, **settings: str) -> str:
    """Markdown table of all finished methods under one setting of everything else.

    Args:
        results: folder of run directories.
        settings: column -> value, where it differs from `FIXED`; values are compared as text.

    Raises:
        DataError: no Hadamard row to compare with, or runs on different windows.
    """
    runs = load(results)
    runs = runs[(runs["status"] == "finished") & (runs["method"] != "fp16")]
    runs = chosen(runs, {**FIXED, **settings})
    names = list(dict.fromkeys(runs.sort_values("created")["method"]))
    heads = ["recipe", "order", "balance", "placement", "online MAC/token"]
    quantizers = [name for name in ("rtn", "gptq") if name in set(runs["weights"])]
    for name in quantizers:
        heads += [f"KL, {name.upper()}", "ratio to Hadamard (95%)"]
    rows: list[list[str]] = []
    bases = {name: _one(runs, BASE, name) for name in quantizers}
    for method in names:
        cells: list[str] = []
        for name in quantizers:
            row = _one(runs, method, name)
            if not cells:
                cells = _recipe(method, row)
            ratio = paired_ratio(window_values(row, f"kl/{TEXT}"), window_values(bases[name], f"kl/{TEXT}"))
            cells += [f"{row[f'kl/{TEXT}']:.4f}", f"{ratio.mean:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"]
        rows.append(cells)
    return markdown(heads, rows, texts=4)


def _recipe(method: str, row: pd.Series) -> list[str]:
    if "method.order" not in row or not isinstance(row["method.order"], list):
        return [method, "-", "-", "-", "0"]
    order = [_stage(stage, row) for stage in row["method.order"]]
    balance = ["diagonal"] if row["method.balance"] else []
    balance += [f"rank {row['method.rank']:.0f}"] if row["method.rank"] else []
    balance += [row["method.mixing"]] if row["method.mixing"] != "none" else []
    width = "" if row["method.kronecker"] else ", full width"
    return [
        method,
        ", ".join(order),
        " + ".join(balance) or "none",
        f"{row['method.placement']}{width}",
        f"{row['transform/multiply_adds']:,.0f}",
    ]


def _stage(stage: str, row: pd.Series) -> str:
    if stage == "art":
        return f"ART {row['method.art_steps']:.0f}"
    if stage == "urt":
        sweeps = row["method.urt_sweeps"]
        return f"URT {row['method.urt_target']}" + (f" x{sweeps:.0f}" if sweeps > 1 else "")
    return str(stage)


def _one(runs: pd.DataFrame, method: str, weights: str) -> pd.Series:
    """The newest run of a method with a weight quantizer."""
    found = runs[(runs["method"] == method) & (runs["weights"] == weights)].sort_values("created")
    if found.empty:
        raise DataError(
            f"no finished run of method {method!r} with {weights.upper()} weights; "
            "`python run.py -m experiment=ablation` makes all of them"
        )
    return found.iloc[-1]


if __name__ == "__main__":
    main(ablation_table, sys.argv[1:])
