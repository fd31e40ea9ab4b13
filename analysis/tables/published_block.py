"""The block of published results below a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from sq.analysis.published import load_published
from sq.analysis.tables.table import Column, Table, lay_out

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
    found = found.assign(head=heads)
    sources = dict.fromkeys(found["origin"])
    columns = [Column[pd.DataFrame](name, partial(_setting, name)) for name in SETTING]
    columns += [Column[pd.DataFrame](head, partial(_range, head), "{}") for head in sorted(set(heads))]
    return lay_out(
        [group for _, group in found.groupby(SETTING, sort=False)],
        columns,
        title="Published by others, not measured here",
        note=f"As printed; low-high (n) where n sources differ. Sources: {'; '.join(sources) or 'none'}; "
        "notes on each number: analysis/published/published.csv.",
    )


def _setting(name: str, group: pd.DataFrame) -> str:
    return str(group[name].iloc[0])


def _range(head: str, group: pd.DataFrame) -> str | None:
    found = group[group["head"] == head].sort_values("value")
    if found.empty:
        return None
    low, high = str(found["printed"].iloc[0]), str(found["printed"].iloc[-1])
    return low if float(low) == float(high) else f"{low}-{high} ({found['origin'].nunique()})"
