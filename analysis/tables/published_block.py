"""The block of published results below a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    return lay_out(
        [group for _, group in found.groupby(SETTING, sort=False)],
        [
            *(Column[pd.DataFrame](name, _setting(name)) for name in SETTING),
            *(Column[pd.DataFrame](head, _range(head), "{}") for head in sorted(set(heads))),
        ],
        title="Published by others, not measured here",
        note=f"As printed; low-high (n) where n sources differ. Sources: {'; '.join(sources) or 'none'}; "
        "notes on each number: analysis/published/published.csv.",
    )


def _setting(name: str) -> Callable[[pd.DataFrame], str]:
    return lambda group: str(group[name].iloc[0])


def _range(head: str) -> Callable[[pd.DataFrame], str | None]:
    def shown(group: pd.DataFrame) -> str | None:
        group = group[group["head"] == head]
        if group.empty:
            return None
        ordered = group.sort_values("value")["printed"]
        low, high = ordered.iloc[0], ordered.iloc[-1]
        return str(low) if float(low) == float(high) else f"{low}-{high} ({group['origin'].nunique()})"

    return shown
