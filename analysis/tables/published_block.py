"""The block of published results below a table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from sq.analysis.published import load_published
from sq.analysis.tables.table import Table

# Shown below tables of models that nobody published, such as the embedded one.
MODELS = ("llama2_7b", "llama3_8b")
SETTING = ["bits", "method", "weights"]


def published_table(metrics: Sequence[str], bits: Sequence[str] | None, models: Sequence[str]) -> Table:
    """Methods by model and metric, as the sources print them; "low-high (n)" where n of them differ.

    Args:
        metrics: as in published.csv.
        bits: labels, and full precision with them; None = all.
        models: of the table; where none of them is published, Llama-2-7B and Llama-3-8B.
    """
    found = load_published()
    found = found[found["metric"].isin(metrics)]
    if bits is not None:
        found = found[found["bits"].isin([*bits, "W16A16KV16"])]
        found = found[found["model"].isin(set(models) & set(found["model"]) or MODELS)]
    heads = [" ".join(filter(None, row)) for row in found[["model", "metric", "protocol"]].to_numpy()]
    rows = [
        {**dict(zip(SETTING, setting, strict=True)), **{head: _range(part) for head, part in group.groupby("head")}}
        for setting, group in found.assign(head=heads).groupby(SETTING, sort=False)
    ]
    shown, sources = sorted(set(heads)), "; ".join(found["origin"].unique()) or "none"
    return Table(
        pd.DataFrame(rows, columns=[*SETTING, *shown], dtype=object),
        title="Published by others, not measured here",
        note=f"As printed; low-high (n) where n sources differ. Sources: {sources}; "
        "notes on each number: analysis/published/published.csv.",
        formats=dict.fromkeys(shown, "{}"),
    )


def _range(found: pd.DataFrame) -> str:
    found = found.sort_values("value")
    low, high = str(found["printed"].iloc[0]), str(found["printed"].iloc[-1])
    return low if float(low) == float(high) else f"{low}-{high} ({found['origin'].nunique()})"
