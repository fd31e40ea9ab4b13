"""Make a table from its declaration and a frame of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from sq.analysis.expected import command, of_experiment
from sq.analysis.results import MissingRuns
from sq.analysis.tables.cells import Cell, Value
from sq.analysis.tables.declaration import Declaration, Each
from sq.analysis.tables.order import in_order, lines, quantizers, texts_of
from sq.analysis.tables.protocol import describe, measured_by, one_protocol
from sq.analysis.tables.published_block import published_table
from sq.analysis.tables.table import Column, Table, lay_out
from sq.errors import DataError
from sq.formats.labels import FULL_PRECISION


def table_of(*declarations: Declaration) -> Callable[..., Table]:
    """The function of a table; of several declarations, which show one metric each, the first is the default.

    It takes the arguments of `render` without the declaration, and `metric`, which chooses among the declarations.
    """
    by_metric = {declaration.metric: declaration for declaration in declarations}

    def table(frame: pd.DataFrame, *, metric: str = declarations[0].metric, **which: Any) -> Table:
        if metric not in by_metric:
            raise DataError(f"metric={metric}; allowed: {', '.join(by_metric)}")
        return render(by_metric[metric], frame, **which)

    table.__name__ = declarations[0].experiment  # names the experiment and the files of a notebook's table
    return table


def render(
    declaration: Declaration, frame: pd.DataFrame, *, base: str | None = None, published: bool = False, **which: Any
) -> Table:
    """The table of a declaration.

    Args:
        declaration: which runs, which columns.
        frame: of `sq.analysis.load` or `load_wandb`.
        base: the method that ratios are to; None = the declaration's.
        published: show what others published at the same bits as well.
        which: `experiment` (None = all runs of the frame; left out = the declaration's), `overrides` that it was run
            with ("model=llama2_7b"), and column -> value, to choose among settings where the frame has several.

    Raises:
        MissingRuns: no run has the metric.
        DataError: runs of different settings, or a base for a table without ratios.
    """
    if base is not None and not declaration.base:
        raise DataError(f"base={base}; {declaration.experiment} shows no ratios to a base method, leave base out")
    base = base or declaration.base
    runs, beside = _compared(declaration, frame, which)
    models, texts = list(dict.fromkeys(runs["model"])), texts_of(runs, declaration.metric)
    labels = in_order(runs.loc[runs["weights"] != "none", "bits"]) or [FULL_PRECISION.label]
    words = {"models": ", ".join(models), "bits": ", ".join(labels), "base": base}
    notes = (f"{describe(runs)}.", declaration.note.format(**words), declaration.remark(runs), beside)
    columns = list(_columns(declaration, runs, texts, base))
    if len(models) > 1:  # the title names a model that is the only one
        columns.insert(0, Column("model", lambda cell: cell.model))
    table = lay_out(
        _rows(declaration, runs, base), columns, declaration.title.format(**words), " ".join(filter(None, notes))
    )
    if declaration.above is not None:
        rows = [{"model": models[0], **declaration.above(texts)}, *table.frame.to_dict("records")]
        table = replace(table, frame=pd.DataFrame(rows, columns=table.frame.columns, dtype=object))
    if published:  # times are published of few settings and of other machines: all of them are shown
        theirs = published_table(declaration.published, None if declaration.task == "none" else labels, models)
        table = replace(table, published=theirs)
    return table


def _compared(declaration: Declaration, frame: pd.DataFrame, which: Mapping[str, Any]) -> tuple[pd.DataFrame, str]:
    """Runs of one protocol with their row names ("row"): those of an experiment, missing ones as such.

    The text names the runs without a result that were left out because their settings are others': a failed run never
    keeps finished ones from being shown.
    """
    columns = dict(which)
    experiment: str | None = columns.pop("experiment", declaration.experiment)
    overrides = columns.pop("overrides", ())
    runs = frame if experiment is None else of_experiment(frame, experiment, overrides)
    if experiment is not None and declaration.beside:
        others = of_experiment(frame, declaration.beside, overrides)
        runs = pd.concat([runs, others[~others["run_id"].isin(runs["run_id"])]], ignore_index=True)
    runs = measured_by(runs if declaration.full_precision else runs[runs["weights"] != "none"], declaration.task)
    if not texts_of(runs, declaration.metric):
        make = command(experiment or declaration.experiment, overrides)
        raise MissingRuns(f"no run has {declaration.metric}/... to show", make)
    check = partial(one_protocol, columns=columns, task=declaration.task, several=declaration.several)
    done = runs[runs["status"] == "finished"]
    left: list[pd.Series] = []
    try:
        return check(runs), ""
    except DataError:
        if done.empty or len(done) == len(runs):
            raise
        check(done)  # raises where finished runs differ, and names in what
    kept = done
    for index, run in runs.drop(done.index).iterrows():
        try:
            check(more := runs.loc[[*kept.index, index]])
            kept = more
        except DataError:
            left.append(run)
    names = "; ".join(f"{run['run_id']} ({run['status']})" for run in left)
    return check(runs.loc[runs.index.isin(kept.index)]), f"Left out, of other settings: {names}."


def _rows(declaration: Declaration, runs: pd.DataFrame, base: str) -> list[Cell]:
    """Each row, as a cell that does not yet belong to a column."""
    rows = []
    for model, name in lines(runs):
        of_model = runs[runs["model"] == model]
        own, bases = of_model[of_model["row"] == name], of_model[of_model["method"] == base]
        parts = [own] if declaration.split is None else [part for _, part in own.groupby(declaration.split, sort=False)]
        rows += [Cell(model, name, part, bases) for part in parts]
    if (number := declaration.sort) is not None:
        rows.sort(key=lambda cell: (cell.model, isinstance(found := number(cell), str), found))
    return rows


def _columns(declaration: Declaration, runs: pd.DataFrame, texts: Sequence[str], base: str) -> Iterator[Column[Cell]]:
    """All columns, those of `Each` once for every place, with {base} written out."""
    for part in declaration.columns:
        if isinstance(part, Column):
            yield part
            continue
        for place in _places(part, runs, texts):
            words = " ".join(filter(None, (place["bits"], (place["weights"] or "").upper())))
            tail = ", ".join(filter(None, (words, place["text"] if len(texts) > 1 or not words else "")))
            for column in part.columns:
                yield replace(column, head=f"{column.head.format(base=base)} {tail}".strip(), value=_at(place, column))


def _places(each: Each, runs: pd.DataFrame, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    labels: Sequence[str | None] = in_order(runs["bits"]) if "bits" in each.over else [None]
    for text in texts if "text" in each.over else [None]:
        for label in labels:
            of_label = runs if label is None else runs[runs["bits"] == label]
            for weights in quantizers(of_label) if "weights" in each.over else [None]:
                yield {"text": text, "bits": label, "weights": weights}


def _at(place: Mapping[str, Any], column: Column[Cell]) -> Callable[[Cell], Value]:
    return lambda cell: column.value(replace(cell, **place))
