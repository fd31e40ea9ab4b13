"""What a cell shows of the runs that belong into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sq.analysis.results import window_values
from sq.errors import DataError
from sq.evaluate.bootstrap import Interval, paired_difference, paired_ratio

Value = float | str | Interval | None
RELATIVE = ("kl", "top1")  # metrics that compare with full precision: full precision itself has none


@dataclass(frozen=True, eq=False)
class Cell:
    """A place in a table. A column that is not repeated for texts, bits or weight quantizers has None for them.

    Attributes:
        model, name: of the row; `name` is the method, with its training where it has one.
        row: all runs of the row.
        bases: all runs of the base method on the same model.
        text: the text, or the zero-shot task, of the column.
        bits, weights: label and weight quantizer of the column.
    """

    model: str
    name: str
    row: pd.DataFrame
    bases: pd.DataFrame
    text: str | None = None
    bits: str | None = None
    weights: str | None = None

    def newest(self, runs: pd.DataFrame) -> pd.Series | None:
        """Of `row` or `bases`, the column's newest run that was made, even if it failed; else a missing one or None."""
        kept = np.ones(len(runs), dtype=bool)  # one column at a time: rows of a frame have more than a hundred
        if self.bits is not None:
            kept &= runs["bits"].eq(self.bits).to_numpy()
        if self.weights is not None:  # full precision has no weight quantizer and stands in the columns of all of them
            kept &= runs["weights"].isin([self.weights, "none"]).to_numpy()
        made = kept & runs["status"].ne("missing").to_numpy()
        if not kept.any():
            return None
        place = int(kept.argmax())
        if made.any():
            place = runs["created"].reset_index(drop=True)[made].sort_values(kind="stable").index[-1]
        newest: pd.Series = runs.iloc[place]
        return newest


def value(run: pd.Series | None, column: str) -> Value:
    """A metric of a run as result.json has it; else "failed", "missing" or "nan"; None where there is no run."""
    if run is None:
        return None
    if run["status"] != "finished":
        return str(run["status"])
    found = run.get(column)
    return "nan" if found is None or pd.isna(found) else float(found)


def measured(metric: str) -> Callable[[Cell], Value]:
    """The value function of a metric on the text of the column: "kl" shows kl/<text>."""

    def shown(cell: Cell) -> Value:
        run = cell.newest(cell.row)
        if run is not None and run["weights"] == "none" and metric in RELATIVE:
            return None
        return value(run, f"{metric}/{cell.text}")

    return shown


def kl_over_base(cell: Cell) -> Value:
    """KL over that of the base method, with a paired interval; a bare number where one kept no values by window.

    Raises:
        DataError: the two were scored on different windows.
    """
    name = f"kl/{cell.text}"
    run, base = cell.newest(cell.row), cell.newest(cell.bases)
    own, other = measured("kl")(cell), value(base, name)
    if not (isinstance(own, float) and isinstance(other, float) and other):
        return None
    first, second = _windows(run, name), _windows(base, name)
    return own / other if first is None or second is None else paired_ratio(first, second)


def perplexity_over_full_precision(cell: Cell) -> Value:
    """Perplexity over full precision's: exp of the mean NLL difference by window; None without values by window."""
    run = cell.newest(cell.row)
    if run is None or run["weights"] == "none" or not isinstance(value(run, f"ppl/{cell.text}"), float):
        return None
    own, full = _windows(run, f"nll/{cell.text}"), _windows(run, f"reference_nll/{cell.text}")
    if own is None or full is None:
        return None
    difference = paired_difference(own, full)
    return Interval(*(float(np.exp(number)) for number in (difference.mean, difference.low, difference.high)))


def _windows(run: pd.Series | None, name: str) -> np.ndarray | None:
    """Values by window; None for a run that kept none of that name, or that comes from W&B, where none are stored."""
    if run is None or run["folder"] is None or pd.isna(run["folder"]):
        return None
    try:
        return window_values(run, name)
    except DataError:
        return None
