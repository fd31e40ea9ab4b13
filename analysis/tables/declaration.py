"""A table as data: which runs it compares and which columns show them. `render` makes the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from sq.analysis.tables.cells import Cell, Value
from sq.analysis.tables.table import Column

OURS = "singlequant"
QUALITY = ("ppl/wikitext2", "ppl/c4")  # what others publish beside tables of perplexity and KL
METHOD = Column[Cell]("method", lambda cell: cell.name)


@dataclass(frozen=True)
class Each:
    """Columns that are repeated for every text (or task), bit label and weight quantizer of the runs.

    Heads get these words behind them: "KL W4A4KV16 GPTQ, wikitext2". A text that is the only one is left out.
    """

    over: Sequence[Literal["text", "bits", "weights"]]
    columns: Sequence[Column[Cell]]


@dataclass(frozen=True)
class Declaration:
    """One table.

    Attributes:
        experiment: file of conf/experiment/ whose runs are shown; its name is that of the table's function and files.
        task: the section of `task` that evaluated the runs, or "none" for timings of runs without an evaluation; those
            of two machines are refused, and published numbers are shown for all bits and models.
        metric: what a run must have to be shown, such as "kl" for kl/<text>.
        columns: from left to right; their heads may contain {base}.
        title: may contain {models} and {bits}.
        note: printed behind the settings that all runs share; may contain {base}.
        remark: computed from the runs and printed behind the note.
        published: metrics of published.csv that `published=True` shows below the table.
        base: the method that ratios are to; empty for a table without ratios.
        full_precision: whether runs that quantize nothing are rows.
        beside: another experiment whose runs are shown below, made with the same overrides; empty for none.
        several: settings that may differ between runs, such as "seed".
        split: a column of the runs whose values get rows of their own, such as "weights".
        sort: the number that sorts the rows of a model; None leaves them in the order of the experiment.
        above: cells by head of a row above all others, from the texts.
    """

    experiment: str
    task: Literal["perplexity", "zeroshot", "none"]
    metric: str
    columns: Sequence[Column[Cell] | Each]
    title: str
    note: str = ""
    remark: Callable[[pd.DataFrame], str] = lambda runs: ""
    published: Sequence[str] = QUALITY
    base: str = ""
    full_precision: bool = False
    beside: str = ""
    several: Sequence[str] = ()
    split: str | None = None
    sort: Callable[[Cell], Value] | None = None
    above: Callable[[Sequence[str]], Mapping[str, Value]] | None = None
