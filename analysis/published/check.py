"""Do our runs of published settings agree with the literature?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sq.analysis.published import SETTING, load_published
from sq.analysis.tables.order import row_name
from sq.analysis.tables.table import Table

# Where one source alone measured a setting: about the median spread of the quantized settings that several measured.
PERPLEXITY_FLOOR = 0.025  # of the value
ACCURACY_FLOOR = 0.6  # points
PRINTED = 0.01  # sources that agree exactly still round to this


TEXTS = ("model", "method", "bits", "weights", "metric")
NUMBERS = {**dict.fromkeys(("ours", "published", "spread"), "{:.2f}"), "sources": "{:.0f}", "difference": "{:+.2f}"}


def check_published(frame: pd.DataFrame) -> Table:
    """Each finished run of a published setting beside the median of its sources; "differs" where it is off by more than
    their spread (largest - smallest; a floor where there is one source).

    A setting is published when model, method, bits, weight quantizer and metric are, evaluated as published: the whole
    text in windows of 2,048 tokens, all questions of as many tasks. Mid-rise activations are nobody's. The training
    of a learned method stands in its name. Where no run is such, the table is empty and its note says so.
    """
    known = {str(key): group for key, group in load_published().groupby(SETTING)}
    rows = [
        {**run.to_dict(), "method": row_name(run), "metric": metric, **_compare(ours, known[key], metric)}
        for _, run in frame[(frame["status"] == "finished") & (frame["activations"] != "midrise")].iterrows()
        for metric, protocol, ours in _numbers(run)
        if (key := str((run["model"], run["method"], run["bits"], run["weights"], metric, protocol))) in known
    ]
    models = ", ".join(dict.fromkeys(map(str, frame["model"])))
    differing = sum(row["differs"] == "yes" for row in rows)
    note = f"{differing} of {len(rows)} differ from the median of their sources by more than the spread."
    if not rows:
        note = (
            f"No run of a published setting is here (models: {models}): nothing can be compared. Published are for "
            "example `python run.py model=llama2_7b bits=w4a4kv4 weights=gptq method=quarot`."
        )
    alone = f"Spread of a single source: {PERPLEXITY_FLOOR:.1%} of a perplexity, {ACCURACY_FLOOR} points."
    found = pd.DataFrame(rows, columns=[*TEXTS, *NUMBERS, "differs"], dtype=object)
    return Table(found, "Runs of published settings", f"{note} {alone}", NUMBERS)


def _numbers(run: pd.Series) -> list[tuple[str, str, float]]:
    """(metric, protocol, value) of what a run measured the way everybody does; accuracies in percent."""
    found = []
    if run.get("task.perplexity.window") == 2048 and pd.isna(run.get("task.perplexity.count")):
        names = [str(name) for name in run.index if str(name).startswith("ppl/")]
        found += [(name, "", float(run[name])) for name in names if pd.notna(run[name])]
    tasks = run.get("task.zeroshot.tasks")
    if isinstance(tasks, list) and pd.isna(run.get("task.zeroshot.limit")) and pd.notna(run.get("acc/mean")):
        found.append(("acc/mean", f"{len(tasks)} tasks", 100 * float(run["acc/mean"])))
    return found


def _compare(ours: float, published: pd.DataFrame, metric: str) -> dict[str, Any]:
    values = published["value"]
    median = float(values.median())
    sources = published["origin"].nunique()
    alone = ACCURACY_FLOOR if metric.startswith("acc/") else PERPLEXITY_FLOOR * median
    spread = alone if sources == 1 else max(float(values.max() - values.min()), PRINTED)
    differs = "yes" if abs(ours - median) > spread else "no"
    found = {"ours": ours, "published": median, "spread": spread, "sources": sources}
    return {**found, "difference": ours - median, "differs": differs}
