"""What a cell shows of the runs that belong into it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from sq.analysis.results import window_values
from sq.errors import DataError
from sq.evaluate.bootstrap import Interval, paired_difference, paired_ratio

OURS = "singlequant"
REFERENCE = "fp16"
Cell = float | str | Interval | None


def newest(runs: pd.DataFrame) -> pd.Series | None:
    """The run that a cell shows: the newest that was made, failed or not, else one that is missing."""
    if runs.empty:
        return None
    made = runs[runs["status"] != "missing"]
    return runs.iloc[0] if made.empty else made.sort_values("created", kind="stable").iloc[-1]


def value(run: pd.Series | None, column: str) -> Cell:
    """A metric of a run as result.json has it; "failed", "missing", "nan"; None where no run was asked for."""
    if run is None:
        return None
    if run["status"] != "finished":
        return str(run["status"])
    found = run.get(column)
    return "nan" if found is None or pd.isna(found) else float(found)


def kl_ratio(run: pd.Series | None, base: pd.Series | None, text: str) -> Cell:
    """KL of a run over KL of another, with a paired interval; a bare number where one kept no values by window.

    Raises:
        DataError: the two were scored on different windows.
    """
    own, other = value(run, f"kl/{text}"), value(base, f"kl/{text}")
    if not (isinstance(own, float) and isinstance(other, float) and other):
        return None
    first, second = _windows(run, f"kl/{text}"), _windows(base, f"kl/{text}")
    return own / other if first is None or second is None else paired_ratio(first, second)


def perplexity_ratio(run: pd.Series | None, text: str) -> Cell:
    """Perplexity over full precision's: exp of the mean NLL difference by window; None without values by window."""
    if not isinstance(value(run, f"ppl/{text}"), float):
        return None
    own, full = _windows(run, f"nll/{text}"), _windows(run, f"reference_nll/{text}")
    if own is None or full is None:
        return None
    difference = paired_difference(own, full)
    return Interval(*(float(np.exp(number)) for number in (difference.mean, difference.low, difference.high)))


def _windows(run: pd.Series | None, name: str) -> np.ndarray | None:
    """Values by window; None for a run from W&B, which is not told them, or one that kept none of that name."""
    if run is None or run["folder"] is None or pd.isna(run["folder"]):
        return None
    try:
        return window_values(run, name)
    except DataError:
        return None


def row_names(runs: pd.DataFrame) -> pd.Series:
    """Methods; a learned one with its training, so that the same one trained longer is a row of its own."""
    return runs.apply(row_name, axis=1)


def row_name(run: pd.Series) -> str:
    """ "quarot"; "spinquant, 25 steps"."""
    amount, unit = training(run)
    return f"{run['method']}, {amount:.0f} {unit}" if unit else str(run["method"])


def training(run: pd.Series) -> tuple[float, str]:
    """How long a method was trained, and the unit: (25, "steps"); (0, "") for one that is not."""
    for unit in ("epochs", "steps"):
        if pd.notna(amount := run.get(f"method.{unit}")):
            return float(amount), unit
    return 0.0, ""


def bits_of(runs: pd.DataFrame) -> str:
    """The bits of runs that share them; full precision beside them does not count."""
    return str(next(iter(runs.loc[runs["weights"] != "none", "bits"]), "W16A16KV16"))


def lines(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """(model, row name) of each line: methods as they come, shorter trainings of a method first."""
    place = {method: number for number, method in enumerate(dict.fromkeys(runs["method"]))}
    models = list(dict.fromkeys(runs["model"]))
    keys = {
        (str(run["model"]), row_name(run)): (models.index(run["model"]), place[run["method"]], training(run)[0])
        for _, run in runs.iterrows()
    }
    return sorted(keys, key=lambda line: keys[line])


def texts_of(runs: pd.DataFrame, metric: str) -> list[str]:
    """Texts (or tasks) that any run has a metric of: "ppl/wikitext2" gives "wikitext2"."""
    columns = [str(column) for column in runs if str(column).startswith(f"{metric}/")]
    return [column.split("/", 1)[1] for column in columns if runs[column].notna().any()]


def in_order(labels: Iterable[str]) -> list[str]:
    """W4A4KV16, W4A4KV4, W4A8KV16, W4A16KV16: fewer bits first, the cache the other way round."""

    def numbers(label: str) -> list[int]:
        weights, activations, *inside = (int(number) for number in re.findall(r"\d+", label))
        return [weights, activations, *(-number for number in inside)]

    return sorted(set(labels), key=numbers)


def quantizers(runs: pd.DataFrame) -> list[str]:
    """The weight quantizers in use, rtn first."""
    found = set(runs["weights"]) - {"none"}
    return sorted(found, key=lambda name: (name != "rtn", name))


def without_model(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A frame of the rows; a model that is the same everywhere is no column (the title names it)."""
    frame = pd.DataFrame(rows, dtype=object)
    return frame.drop(columns="model") if frame["model"].nunique() == 1 else frame
