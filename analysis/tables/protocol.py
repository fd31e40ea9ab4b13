"""One table, one protocol: runs that differ in more than what a table compares are not put side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from sq.analysis.results import as_text, chosen
from sq.analysis.tables.order import row_name
from sq.errors import DataError
from sq.formats.labels import parse_bits

IGNORED = ("name", "batch_size", "device", "placement", "seed")  # last parts of settings that change no protocol
REASON = 160  # characters of an error; result.json has all of it


def measured_by(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """Runs with settings of a section of `task`, "perplexity" or "zeroshot"; "none": those without an evaluation."""
    if task == "none":
        return frame[frame["task.name"] == "none"] if "task.name" in frame else frame.iloc[:0]
    settings = [str(name) for name in frame if str(name).startswith(f"task.{task}.")]
    return frame[frame[settings].notna().any(axis=1)]


def one_protocol(
    runs: pd.DataFrame, columns: Mapping[str, str], *, task: str, several: Iterable[str] = ()
) -> pd.DataFrame:
    """The runs with the given settings and their row names ("row"), after a check that nothing else differs.

    Checked are what is evaluated (windows, count, window length, tasks, and the fingerprint of the text), the model
    (dtype, outliers), calibration, the activation quantizer, bits, the quantizer of keys and values, seeds, each weight
    quantizer's settings, and each method's own.

    Args:
        runs: of any status, those of the task alone.
        columns: column -> value, to choose one where the check finds several.
        task: section of `task` that the table shows: "perplexity", "zeroshot", or "none" for runs without an
            evaluation: those are timed, so that the machine counts too.
        several: columns that the table has a place for ("bits", "seed").

    Raises:
        DataError: nothing is left, or settings differ; all of them are named with their values.
    """
    full = runs["weights"] == "none"  # full precision: how others are quantized does not choose it
    own = {column: value for column, value in columns.items() if column.startswith(("model", "task."))}
    kept = chosen(runs[~full], columns).index.union(chosen(runs[full], own).index)
    runs = runs.loc[runs.index.isin(kept)]
    if runs.empty:
        wanted = ", ".join(f"{column}={value}" for column, value in columns.items())
        raise DataError(f"no run has {wanted}" if wanted else "there are no runs to show")
    runs = runs.assign(row=runs.apply(row_name, axis=1))
    quantized = runs[runs["weights"] != "none"]
    # Where queries, keys and values are not rounded, their quantizer does not matter.
    attention = quantized[[parse_bits(label).quantizes_attention for label in quantized["bits"]]]
    prints = [str(name) for name in runs if str(name).startswith("fingerprint/")]
    fixed = ["bits", "seed", "activations", *_below(runs, "activations"), *_below(runs, "calibration")]
    checks: list[tuple[pd.DataFrame, list[str], list[str]]] = [  # of these runs, these settings, within each of those
        (runs, _below(runs, f"task.{task}"), []),
        (runs, [*_below(runs, "model"), *prints], ["model", "seed"]),
        (quantized, fixed, []),
        (quantized, _below(runs, "weights"), ["weights"]),
        (quantized, _below(runs, "method"), ["row"]),
        (attention, _below(runs, "kv_cache"), []),
        (runs if task == "none" else runs.iloc[:0], _below(runs, "environment"), []),
    ]
    problems: dict[str, str] = {}
    for part, names, groups in checks:
        for name in names:
            if name not in several and (values := _different(part, name, groups)):
                problems[name] = f"{name} is {' or '.join(values)}, choose one ({name}={values[0]})"
    if problems:
        raise DataError(
            "runs of different settings do not go into one table: " + "; ".join(problems.values()) + ". "
            "experiment=NAME takes the runs of one experiment alone."
        )
    return runs


def describe(runs: pd.DataFrame) -> str:
    """What holds for all runs of a table that passed the check, and why runs failed: for its note."""
    quantized = runs[runs["weights"] != "none"]
    count, window = _common(runs, "task.perplexity.count"), _common(runs, "task.perplexity.window")
    parts = [
        f"{count or 'all'} windows of {window} tokens" if window else "",
        _shared("at most {} questions a task", runs, "task.zeroshot.limit"),
        _shared("{} calibration tokens", quantized, "calibration.tokens"),
        _shared("{} activations", quantized, "activations"),
        _outliers(runs),
        _shared("{} arithmetic", quantized, "arithmetic").replace("fake arithmetic", ""),
        _shared("seed {}", quantized, "seed"),
    ]
    common = ", ".join(part for part in parts if part)
    for status in ("failed", "damaged"):
        reasons = [
            f"{run['row']} ({run['bits']}, {run['weights']}): {str(run['error']).splitlines()[0][:REASON]}"
            for _, run in runs[runs["status"] == status].iterrows()
        ]
        common += f". {status.capitalize()}: {'; '.join(reasons)}" if reasons else ""
    return common


def _outliers(runs: pd.DataFrame) -> str:
    """What the embedded model had; nothing of models that have no planted outliers to leave out."""
    embedded = runs[runs["model.path"] == "embedded"] if "model.path" in runs else runs
    text = _shared("{} outliers", embedded, "model.outliers").replace("none", "no planted")
    return text if len(embedded) == len(runs) else ""


def _shared(text: str, runs: pd.DataFrame, name: str) -> str:
    value = _common(runs, name)
    return text.format(value) if value else ""


def _common(runs: pd.DataFrame, name: str) -> str:
    values = set(runs[name].map(as_text)) if name in runs else set()
    return (values.pop() if len(values) == 1 else "").replace("null", "")


def _different(part: pd.DataFrame, name: str, groups: list[str]) -> list[str]:
    """Values of a column, where it has several within one group."""
    if name not in part or part.empty:
        return []
    if name.startswith(("fingerprint/", "environment.")):  # measured: a failed, missing or W&B run has none
        part = part[part[name].notna()]
    values = part[name].map(as_text)
    split = [group for _, group in values.groupby([part[key] for key in groups])] if groups else [values]
    return next((found for group in split if len(found := list(dict.fromkeys(group))) > 1), [])


def _below(runs: pd.DataFrame, group: str) -> list[str]:
    names = [str(name) for name in runs if str(name).startswith(f"{group}.")]
    return [name for name in names if name.split(".")[-1] not in IGNORED]
