"""KL of each recipe of SingleQuant, as a ratio to a randomized Hadamard at every site."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from sq.analysis.tables.cells import Cell, kl_over_base, measured, value
from sq.analysis.tables.declaration import Declaration, Each
from sq.analysis.tables.table import Column


def _run(cell: Cell) -> pd.Series:
    """A run of the recipe, finished where one is."""
    made = cell.row[cell.row["status"] == "finished"]
    return (cell.row if made.empty else made).iloc[0]


def _part(shown: Callable[[pd.Series], str]) -> Callable[[Cell], str]:
    """A part of the recipe; "-" for a method that is no recipe of SingleQuant."""
    return lambda cell: shown(_run(cell)) if isinstance(_run(cell).get("method.order"), list) else "-"


def _order(run: pd.Series) -> str:
    sweeps = f" x{run['method.urt_sweeps']:.0f}" if run["method.urt_sweeps"] > 1 else ""
    stages = {"art": f"ART {run['method.art_steps']:.0f}", "urt": f"URT {run['method.urt_target']}{sweeps}"}
    return ", ".join(stages.get(stage, str(stage)) for stage in run["method.order"])


def _balance(run: pd.Series) -> str:
    parts = ["diagonal"] if run["method.balance"] else []
    parts += [f"rank {run['method.rank']:.0f}"] if run["method.rank"] else []
    parts += [run["method.mixing"]] if run["method.mixing"] != "none" else []
    return " + ".join(parts) or "none"


def _placement(run: pd.Series) -> str:
    return f"{run['method.placement']}{'' if run['method.kronecker'] else ', full width'}"


ABLATION = Declaration(
    experiment="table_ablation",
    task="perplexity",
    metric="kl",
    base="hadamard",
    columns=(
        Column("recipe", lambda cell: cell.name),
        Column("order", _part(_order)),
        Column("balance", _part(_balance)),
        Column("placement", _part(_placement)),
        Column("online MAC/token", lambda cell: value(_run(cell), "transform/multiply_adds"), "{:,.0f}"),
        Each(
            ["text", "weights"],
            [Column("KL", measured("kl"), "{:.4f}"), Column("/ {base}", kl_over_base, "{:.3f}")],
        ),
    ),
    title="Recipes, {models}, {bits}",
    note="KL in nats per token; ratios to {base} with 95% paired bootstrap over windows.",
)
