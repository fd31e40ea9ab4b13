"""The block of published results below a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sq.analysis.published import load_published
from sq.analysis.tables.table import Table

# Shown below tables of models that nobody published, such as the embedded one.
MODELS = ("llama2_7b", "llama3_8b")


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
    heads = found.apply(lambda row: " ".join(part for part in row[["model", "metric", "protocol"]] if part), axis=1)
    found = found.assign(head=heads) if len(found) else found.assign(head="")
    columns = sorted(set(found["head"]))
    rows: list[dict[str, Any]] = []
    for key, group in found.groupby(["bits", "method", "weights"], sort=False):
        cells = {head: _range(group[group["head"] == head]) for head in columns}
        rows.append({**dict(zip(("bits", "method", "weights"), key, strict=True)), **cells})
    sources = dict.fromkeys(found["origin"])
    return Table(
        pd.DataFrame(rows, columns=["bits", "method", "weights", *columns], dtype=object),
        title="Published by others, not measured here",
        note=f"As printed; low-high (n) where n sources differ. Sources: {'; '.join(sources) or 'none'}; "
        "notes on each number: analysis/published/published.csv.",
        formats=dict.fromkeys(columns, "{}"),
    )


def _range(group: pd.DataFrame) -> str | None:
    if group.empty:
        return None
    ordered = group.sort_values("value")["printed"]
    low, high = ordered.iloc[0], ordered.iloc[-1]
    return low if float(low) == float(high) else f"{low}-{high} ({group['origin'].nunique()})"
