"""Figure 3 of the paper: prefill and decode speed-up over bf16 by batch size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sq.analysis.figures.look import BLACK, BLUE, DOUBLE, GREY, PURPLE, TIMES, VERMILLION, blank, styled, tips
from sq.analysis.figures.select import NAMES, finished
from sq.runs.results import read_result

COLUMN = re.compile(r"speed/(?P<phase>prefill|decode)/(?P<kind>\w+)/b(?P<batch>\d+)$")
BASE = "bf16"
# Kind -> its name, marker, dashes and colour; kinds that were not measured are not drawn.
KINDS = {
    "bf16_graph": ("bf16, CUDA graph", "D", ":", BLACK),
    "fake": ("fake quantized", "v", "-.", PURPLE),
    "packed": ("packed int4", "s", "--", BLUE),
    "packed_graph": ("packed int4, CUDA graph", "o", "-", VERMILLION),
}


@styled
def figure_speed(frame: pd.DataFrame, *, overrides: Sequence[str] = ()) -> Figure:
    """Tokens per second over those of bf16 at the same batch size, prefill and decode.

    All kinds of the experiment's first method; of its others the fastest packed kind, because bf16 is the same for all.
    The title names the device, the model, and random weights where it has them.
    """
    measured = next((str(name) for name in frame if COLUMN.match(str(name))), "speed/")
    runs = finished(frame, "figure_speed", overrides, measured)
    run, *others = (one for _, one in runs.iterrows())
    figure = blank(DOUBLE, 2.3)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, phase in zip(panels, ("prefill", "decode"), strict=True):
        _panel(axes, speeds(run), phase)
        for other in others:
            _fastest(axes, speeds(other), phase, NAMES.get(other["method"], str(other["method"])))
    panels[0].set_ylabel("speed-up over bf16")
    panels[0].set_ylim(bottom=0)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(_what(run), fontsize=8, x=0.01, ha="left")
    return figure


def speeds(run: pd.Series) -> pd.DataFrame:
    """Columns phase, kind, batch, speedup (over bf16 of the same phase and batch), where both were measured."""
    found = {
        match: float(run[name]) for name in run.index if (match := COLUMN.match(str(name))) and pd.notna(run[name])
    }
    base = {(m["phase"], m["batch"]): rate for m, rate in found.items() if m["kind"] == BASE}
    rows = [
        {**match.groupdict(), "batch": int(match["batch"]), "speedup": rate / base[place]}
        for match, rate in found.items()
        if match["kind"] != BASE and (place := (match["phase"], match["batch"])) in base
    ]
    return pd.DataFrame(rows, columns=["phase", "kind", "batch", "speedup"]).sort_values(["kind", "batch"])


def _panel(axes: Axes, rates: pd.DataFrame, phase: str) -> None:
    rates = rates[rates["phase"] == phase]
    axes.axhline(1, color=GREY, lw=0.8)
    for kind, (label, marker, dashes, colour) in KINDS.items():
        curve = rates[rates["kind"] == kind]
        if len(curve):
            axes.plot(curve["batch"], curve["speedup"], marker=marker, ls=dashes, color=colour, label=label)
            told = [f"{label}, batch {row.batch}: {row.speedup:.2f}{TIMES} bf16" for row in curve.itertuples()]
            tips(axes, curve["batch"], curve["speedup"], told)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(rates["batch"].unique()))
    axes.xaxis.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(f"{{x:g}}{TIMES}")
    axes.set(title=phase, xlabel="batch size (sequences)")


def _fastest(axes: Axes, rates: pd.DataFrame, phase: str, name: str) -> None:
    """The packed kind that comes last in KINDS of those that were measured, as a thin line."""
    rates = rates[rates["phase"] == phase]
    kind = next((kind for kind in reversed(KINDS) if kind.startswith("packed") and (rates["kind"] == kind).any()), None)
    if kind is not None:
        curve = rates[rates["kind"] == kind]
        label = f"{KINDS[kind][0]}, {name}"
        axes.plot(curve["batch"], curve["speedup"], marker="x", ls=(0, (1, 1)), color=GREY, lw=0.8, label=label)


def _what(run: pd.Series) -> str:
    result = read_result(Path(run["folder"]))
    facts: dict[str, Any] = (result.extras.get("speed") if result else None) or {}
    parts = [NAMES.get(run["method"], str(run["method"])), str(run["model"]), str(run["bits"])]
    parts += ["random weights"] if facts.get("random_weights") else []
    parts += [f"{facts['prompt']} + {facts['new_tokens']} tokens"] if {"prompt", "new_tokens"} <= set(facts) else []
    parts += [str(facts["device"])] if facts.get("device") else []
    return ", ".join(parts)
