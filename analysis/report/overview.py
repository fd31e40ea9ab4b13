"""All runs of a folder as one table: grouped by model and quantizer, whatever experiment made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sq.analysis.results import as_text, window_values
from sq.analysis.tables.declaration import OURS
from sq.analysis.tables.order import in_order, row_name, texts_of
from sq.analysis.tables.table import show
from sq.errors import DataError
from sq.evaluate.bootstrap import Interval, paired_ratio

QUANTIZER = ("model", "bits", "weights", "activations", "clip")
PROTOCOL = "evaluation"
UNREAD = "no text evaluated"
REASON = 300  # characters of an error; result.json has all of it


@dataclass(frozen=True)
class Shown:
    """A cell: what is read, and what it is sorted by (None = last)."""

    text: str
    key: float | str | None = None


@dataclass(frozen=True)
class Group:
    """Runs of one model, quantizer and evaluation: `title` says which; `rows` have a cell for each head."""

    title: str
    rows: list[list[Shown]]


@dataclass(frozen=True)
class Overview:
    """The table of all finished runs, and beside it what has no result.

    Attributes:
        heads: of the columns; the first `keys` of them repeat a group's title, and those in `numbers` are aligned so.
        beside: status, name and reason of runs that failed, are damaged or interrupted, cannot be read or did not end.
    """

    heads: list[str]
    keys: int
    numbers: set[str]
    groups: list[Group]
    beside: list[tuple[str, str, str]]


def overview(frame: pd.DataFrame) -> Overview:
    """All runs of `sq.analysis.load`."""
    runs = frame[frame["status"] == "finished"].copy()
    runs["clip"] = [_clip(run) for _, run in runs.iterrows()]
    texts = [_texts(run) for _, run in runs.iterrows()]
    runs["text"] = [found[0] if found else "-" for found in texts]
    runs[PROTOCOL] = [_protocol(run) for _, run in runs.iterrows()]
    more = list(dict.fromkeys(text for found in texts for text in found[1:]))
    keys = [*QUANTIZER, PROTOCOL]
    groups = []
    runs["shown"] = ""
    for _, own in runs.groupby(keys, sort=False):
        runs.loc[own.index, "shown"] = _names(own)
    columns = {name: of for name, of in _columns(more).items() if any(of(run).text for _, run in runs.iterrows())}
    for names, own in sorted(runs.groupby(keys, sort=False), key=lambda pair: _place(pair[0], runs)):
        ratios = _ratios(own)
        head = [Shown(str(name), str(name)) for name in names]
        rows = [
            [*head, *(ratios[index] if name == RATIO else of(run) for name, of in columns.items())]
            for index, run in _best_first(own).iterrows()
        ]
        groups.append(Group(_title(dict(zip(keys, map(str, names), strict=True))), rows))
    texts_alone = {"method", "made (UTC)", "run"}
    return Overview([*keys, *columns], len(keys), set(columns) - texts_alone, groups, _beside(frame))


RATIO = f"KL / {OURS}"


def _columns(more: Sequence[str]) -> dict[str, Callable[[pd.Series], Shown]]:
    """Head -> the cell of a run."""

    def of(metric: str, shape: str) -> Callable[[pd.Series], Shown]:
        return lambda run: _number(run.get(f"{metric}/{run['text']}"), shape)

    def at(name: str, shape: str, unit: float = 1.0) -> Callable[[pd.Series], Shown]:
        return lambda run: _number(run.get(name), shape, unit)

    return {
        "method": lambda run: Shown(run["shown"], run["shown"]),
        "seed": lambda run: Shown(str(run["seed"]) if run["weights"] != "none" else "", float(run["seed"])),
        "ppl": of("ppl", "{:.3f}"),
        "KL": of("kl", "{:.4f}"),
        RATIO: of("kl", "{:.3f}"),  # replaced by the group's own
        "top-1": of("top1", "{:.1%}"),
        **{f"ppl {text}": at(f"ppl/{text}", "{:.3f}") for text in more},
        **{f"KL {text}": at(f"kl/{text}", "{:.4f}") for text in more},
        "accuracy": at("acc/mean", "{:.1%}"),
        "bits/weight": at("model/bits_per_weight", "{:.2f}"),
        "M MAC/token": at("transform/multiply_adds", "{:,.2f}", 1e6),
        "quantize s": at("quantize/seconds", "{:,.1f}"),
        "peak MB": at("quantize/peak_memory_bytes", "{:,.0f}", 1e6),
        "model MB": at("model/bytes", "{:,.1f}", 1e6),
        "made (UTC)": lambda run: Shown(str(run["created"])[:16].replace("T", " "), str(run["created"])),
        "run": lambda run: Shown(str(run["run_id"]), str(run["run_id"])),
    }


def _names(runs: pd.DataFrame) -> list[str]:
    """Of the runs of a group: those of one name say in which of their settings they differ."""
    settings = [
        name for name in map(str, runs) if name.startswith(("method.", "weights.", "activations.", "kv_cache."))
    ]
    names = [row_name(run) for _, run in runs.iterrows()]
    texts = [[as_text(run[name]) for name in settings] for _, run in runs.iterrows()]
    found = []
    for name, own in zip(names, texts, strict=True):
        others = [other for same, other in zip(names, texts, strict=True) if same == name]
        told = [
            f"{setting.removeprefix('method.')}={text}"
            for setting, text, values in zip(settings, own, zip(*others, strict=True), strict=True)
            if len(set(values)) > 1
        ]
        found.append(f"{name} ({', '.join(told)})" if told else name)
    return found


def _number(value: Any, shape: str, unit: float = 1.0) -> Shown:
    return Shown("") if value is None or pd.isna(value) else Shown(shape.format(value / unit), float(value))


def _ratios(runs: pd.DataFrame) -> dict[Any, Shown]:
    """KL over that of the group's newest SingleQuant, with its interval where both kept values by window."""
    base = runs[runs["method"] == OURS]
    return {index: _ratio(run, None if base.empty else base.iloc[-1]) for index, run in runs.iterrows()}


def _ratio(run: pd.Series, base: pd.Series | None) -> Shown:
    name = f"kl/{run['text']}"
    own, other = run.get(name), None if base is None else base.get(name)
    if run["weights"] == "none" or own is None or other is None or pd.isna(own) or pd.isna(other) or not other:
        return Shown("")
    try:
        assert base is not None
        found: Interval | float = paired_ratio(window_values(run, name), window_values(base, name))
    except DataError:  # one of them kept no values by window
        found = own / other
    return Shown(show(found, "{:.3f}"), own / other)


def _clip(run: pd.Series) -> str:
    return "-" if run["weights"] == "none" else as_text(run.get("activations.clip"))


def _texts(run: pd.Series) -> list[str]:
    """The texts that a run was measured on, as it lists them."""
    listed = run.get("task.perplexity.texts")
    found = texts_of(pd.DataFrame([run]), "ppl")
    return [text for text in listed if text in found] if isinstance(listed, list) else found


def _protocol(run: pd.Series) -> str:
    """What a run was measured on: "pydoc, 48 windows of 512; calibrated on 16,384 tokens"."""
    count, window = as_text(run.get("task.perplexity.count")), as_text(run.get("task.perplexity.window"))
    windows = f"{'all' if count == 'null' else count} windows of {window}"
    parts = [UNREAD if run["text"] == "-" else f"{run['text']}, {windows}"]
    tokens = run.get("calibration.tokens")
    if run["weights"] != "none" and tokens is not None and not pd.isna(tokens):
        parts.append(f"calibrated on {tokens:,.0f} tokens")
    return "; ".join(parts)


def _title(group: Mapping[str, str]) -> str:
    """ "smollm2: W4A4KV16, gptq, symmetric, clip site; pydoc, 48 windows of 512; calibrated on 16,384 tokens"."""
    quantizer = ", ".join([group["bits"], group["weights"], group["activations"], f"clip {group['clip']}"])
    return f"{group['model']}: {'full precision' if group['weights'] == 'none' else quantizer}; {group[PROTOCOL]}"


def _place(names: Any, runs: pd.DataFrame) -> tuple[Any, ...]:
    """Where a group stands: models as they come, full precision first, fewer bits before more."""
    group = dict(zip((*QUANTIZER, PROTOCOL), names, strict=True))
    models, labels = list(dict.fromkeys(runs["model"])), in_order(runs["bits"])
    unread = str(group[PROTOCOL]).startswith(UNREAD)  # timings and the like, behind what was evaluated
    return (
        models.index(group["model"]),
        group["weights"] != "none",
        labels.index(group["bits"]),
        unread,
        *map(str, names),
    )


def _best_first(runs: pd.DataFrame) -> pd.DataFrame:
    """By KL, or perplexity where there is none; the newest first among equals."""
    for metric in ("kl", "ppl"):
        values = [run.get(f"{metric}/{run['text']}") for _, run in runs.iterrows()]
        if pd.Series(values, dtype=float).notna().any():
            return runs.iloc[pd.Series(values, dtype=float).argsort(kind="stable")]
    return runs.iloc[::-1]


def _beside(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    undone = frame[frame["status"] != "finished"]
    rows = [
        (str(run["status"]), str(run["run_id"]), (str(run["error"]).strip().splitlines() or [""])[0][:REASON])
        for _, run in undone.iterrows()
    ]
    rows += [("cannot be read", name, reason[:REASON]) for name, reason in frame.attrs["unreadable"].items()]
    rows += [("interrupted", name, reason[:REASON]) for name, reason in frame.attrs["interrupted"].items()]
    return rows + [("unfinished", name, "it goes on, or was killed") for name in frame.attrs["unfinished"]]
