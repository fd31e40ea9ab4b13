"""One point a method: its quality, how long quantizing takes, and what its transforms cost online."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from sq.analysis.figures.look import BLUE, GREY, VERMILLION
from sq.analysis.figures.select import NAMES, OURS, finished, text_metric
from sq.analysis.tables.order import training

Kind = Literal["SingleQuant", "closed form", "trained"]
# Marker and colour by kind; printed in grey, the marker alone shows the kind.
MARKS: dict[Kind, tuple[str, str]] = {
    "SingleQuant": ("o", VERMILLION),
    "closed form": ("s", BLUE),
    "trained": ("^", GREY),
}
Quality = Literal["kl", "ppl", "acc"]


def method_points(
    frame: pd.DataFrame, experiment: str, overrides: Sequence[str] = (), *, quality: Quality = "kl"
) -> pd.DataFrame:
    """Quality, seconds and multiply-adds of every method of an experiment, all three from the same run.

    Args:
        frame: of `sq.analysis.load`.
        experiment: file of conf/experiment/ with one run a method.
        overrides: that it was run with.
        quality: "kl" (nats per token) or "ppl" on the first text, or "acc" (mean of the tasks, 0 to 1).

    Returns:
        columns method, label, kind, quality, seconds, multiply_adds (per token, all layers).

    Raises:
        MissingRuns: no run is there.
    """
    runs = finished(frame, experiment, overrides, "quantize/seconds")
    column = text_metric(runs, quality)
    runs = finished(frame, experiment, overrides, column)
    runs = runs[runs["quantize/seconds"].notna()]  # full precision quantizes nothing
    return pd.DataFrame(
        {
            "method": runs["method"],
            "label": [_label(run) for _, run in runs.iterrows()],
            "kind": [_kind(run) for _, run in runs.iterrows()],
            "quality": runs[column].astype(float),
            "seconds": runs["quantize/seconds"].astype(float),
            "multiply_adds": runs["transform/multiply_adds"].astype(float),
        }
    ).reset_index(drop=True)


def _label(run: pd.Series) -> str:
    name = NAMES.get(run["method"], str(run["method"]))
    amount, unit = training(run)
    return f"{name}, {amount:g} {unit}" if unit else name


def _kind(run: pd.Series) -> Kind:
    if training(run)[0] > 0:
        return "trained"
    return "SingleQuant" if run["method._target_"] == OURS else "closed form"
