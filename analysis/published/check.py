"""Do our runs of published settings agree with the literature?"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from sq.analysis.published import SETTING, load_published
from sq.analysis.tables.order import row_name
from sq.analysis.tables.table import Column, Table, lay_out

# Where one source alone measured a setting: about the median spread of the quantized settings that several measured.
PERPLEXITY_FLOOR = 0.025  # of the value
ACCURACY_FLOOR = 0.6  # points
PRINTED = 0.01  # sources that agree exactly still round to this


@dataclass(frozen=True, eq=False)
class Compared:
    """A number of one run beside what others published of the same setting."""

    run: pd.Series
    metric: str
    ours: float
    published: pd.DataFrame

    @property
    def median(self) -> float:
        """Of the published values."""
        return float(self.published["value"].median())

    @property
    def sources(self) -> int:
        """How many published it."""
        return self.published["origin"].nunique()

    @property
    def spread(self) -> float:
        """Largest - smallest of the sources; a floor where there is one source."""
        if self.sources == 1:
            return ACCURACY_FLOOR if self.metric.startswith("acc/") else PERPLEXITY_FLOOR * self.median
        return max(float(self.published["value"].max() - self.published["value"].min()), PRINTED)

    @property
    def differs(self) -> bool:
        """Whether ours is off by more than the sources are."""
        return abs(self.ours - self.median) > self.spread


COLUMNS = (
    Column[Compared]("model", lambda row: row.run["model"]),
    Column[Compared]("method", lambda row: row_name(row.run)),
    Column[Compared]("bits", lambda row: row.run["bits"]),
    Column[Compared]("weights", lambda row: row.run["weights"]),
    Column[Compared]("metric", lambda row: row.metric),
    Column[Compared]("ours", lambda row: row.ours, "{:.2f}"),
    Column[Compared]("published", lambda row: row.median, "{:.2f}"),
    Column[Compared]("spread", lambda row: row.spread, "{:.2f}"),
    Column[Compared]("sources", lambda row: row.sources, "{:.0f}"),
    Column[Compared]("difference", lambda row: row.ours - row.median, "{:+.2f}"),
    Column[Compared]("differs", lambda row: "yes" if row.differs else "no"),
)


def check_published(frame: pd.DataFrame) -> Table:
    """Each finished run of a published setting beside the median of its sources; "differs" where it is off by more than
    their spread (largest - smallest; a floor where there is one source).

    A setting is published when model, method, bits, weight quantizer and metric are, evaluated as published: the whole
    text in windows of 2,048 tokens, all questions of as many tasks. Mid-rise activations are nobody's. The training
    of a learned method stands in its name. Where no run is such, the table is empty and its note says so.
    """
    known = {str(key): group for key, group in load_published().groupby(SETTING)}
    rows: list[Compared] = []
    for _, run in frame[(frame["status"] == "finished") & (frame["activations"] != "midrise")].iterrows():
        for metric, protocol, ours in _numbers(run):
            key = str((run["model"], run["method"], run["bits"], run["weights"], metric, protocol))
            if key in known:
                rows.append(Compared(run, metric, ours, known[key]))
    models = ", ".join(dict.fromkeys(map(str, frame["model"])))
    note = (
        f"{sum(row.differs for row in rows)} of {len(rows)} differ from the median of their sources by more than the "
        "spread."
        if rows
        else f"No run of a published setting is here (models: {models}): nothing can be compared. Published are for "
        "example `python run.py model=llama2_7b bits=w4a4kv4 weights=gptq method=quarot`."
    )
    alone = f"Spread of a single source: {PERPLEXITY_FLOOR:.1%} of a perplexity, {ACCURACY_FLOOR} points."
    return lay_out(rows, COLUMNS, "Runs of published settings", f"{note} {alone}")


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
