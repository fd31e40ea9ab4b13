"""KL of each recipe of SingleQuant, as a ratio to a randomized Hadamard at every site."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sq.analysis.tables.cells import kl_ratio, lines, newest, quantizers, texts_of, value, without_model
from sq.analysis.tables.protocol import describe
from sq.analysis.tables.published_block import published_table
from sq.analysis.tables.select import compared
from sq.analysis.tables.table import Table

BASE = "hadamard"


def table_ablation(frame: pd.DataFrame, *, base: str = BASE, published: bool = False, **which: Any) -> Table:
    """ART, URT, their order, balance, Kronecker axes and placement, with each weight quantizer.

    Args:
        frame: of `sq.analysis.load` or `load_wandb`.
        base: method that KL is compared with.
        published: show published perplexities of this bit-width as well.
        which: experiment, overrides, column -> value: see `sq.analysis.tables.select.compared`.

    Raises:
        MissingRuns: no run has a KL.
        DataError: runs of different settings, or scored on different windows.
    """
    runs = compared(frame, "table_ablation", which, task="perplexity", metric="kl")
    texts = texts_of(runs, "kl")
    heads = [
        (f"{quantizer.upper()}, {text}" if len(texts) > 1 else quantizer.upper(), quantizer, text)
        for text in texts
        for quantizer in quantizers(runs)
    ]
    rows: list[dict[str, Any]] = []
    for model, name in lines(runs):
        own = runs[(runs["model"] == model) & (runs["row"] == name)]
        bases = runs[(runs["model"] == model) & (runs["method"] == base)]
        cells: dict[str, Any] = {"model": model, **_recipe(name, own)}
        for head, quantizer, text in heads:
            run, other = (newest(part[part["weights"] == quantizer]) for part in (own, bases))
            cells |= {f"KL {head}": value(run, f"kl/{text}"), f"/ {base} {head}": kl_ratio(run, other, text)}
        rows.append(cells)
    models = list(dict.fromkeys(runs["model"]))
    bits = str(runs["bits"].iloc[0])
    return Table(
        without_model(rows),
        title=f"Recipes, {', '.join(models)}, {bits}",
        note=f"{describe(runs)}. KL in nats per token; ratios to {base} with 95% paired bootstrap over windows.",
        formats={
            "online MAC/token": "{:,.0f}",
            **{f"KL {head[0]}": "{:.4f}" for head in heads},
            **{f"/ {base} {head[0]}": "{:.3f}" for head in heads},
        },
        published=published_table(["ppl/wikitext2", "ppl/c4"], [bits], models) if published else None,
    )


def _recipe(name: str, runs: pd.DataFrame) -> dict[str, Any]:
    made = runs[runs["status"] == "finished"]
    row = (runs if made.empty else made).iloc[0]
    cost = value(row, "transform/multiply_adds")
    if not isinstance(row.get("method.order"), list):
        return {"recipe": name, "order": "-", "balance": "-", "placement": "-", "online MAC/token": cost}
    balance = ["diagonal"] if row["method.balance"] else []
    balance += [f"rank {row['method.rank']:.0f}"] if row["method.rank"] else []
    balance += [row["method.mixing"]] if row["method.mixing"] != "none" else []
    width = "" if row["method.kronecker"] else ", full width"
    return {
        "recipe": name,
        "order": ", ".join(_stage(stage, row) for stage in row["method.order"]),
        "balance": " + ".join(balance) or "none",
        "placement": f"{row['method.placement']}{width}",
        "online MAC/token": cost,
    }


def _stage(stage: str, row: pd.Series) -> str:
    if stage == "art":
        return f"ART {row['method.art_steps']:.0f}"
    if stage == "urt":
        sweeps = row["method.urt_sweeps"]
        return f"URT {row['method.urt_target']}" + (f" x{sweeps:.0f}" if sweeps > 1 else "")
    return str(stage)
