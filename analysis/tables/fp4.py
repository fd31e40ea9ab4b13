"""MXFP4 and NVFP4: every method over plain rounding in the same format."""

from __future__ import annotations

from sq.analysis.tables.cells import Cell, Value, kl_over_base, measured, value
from sq.analysis.tables.declaration import METHOD, Declaration, Each
from sq.analysis.tables.declared import METRICS
from sq.analysis.tables.table import Column


def _online(cell: Cell) -> Value:
    """Multiply-adds a token that the transforms of all layers cost at run time."""
    return value(cell.newest(cell.row), "transform/multiply_adds")


FP4 = [
    Declaration(
        experiment="table_fp4",
        task="perplexity",
        metric=metric,
        several=["bits"],
        base="rtn" if metric == "kl" else "",
        columns=[
            METHOD,
            Each(
                ["text", "bits", "weights"],
                [
                    Column("", measured(metric), form),
                    *([Column("/ {base}", kl_over_base, "{:.3f}")] if metric == "kl" else []),
                ],
            ),
            Each(["bits"], [Column("online MAC/token", _online, "{:,.0f}")]),
        ],
        title=f"{title}, {{models}}",
        note="Ratios to {base} in the same format, with 95% paired bootstrap over windows." if metric == "kl" else "",
    )
    for metric, (title, form) in METRICS.items()
]
