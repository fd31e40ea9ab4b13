"""Perplexity and KL of every method with each weight quantizer, at one bit-width."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sq.analysis.tables.cells import (
    OURS,
    Cell,
    bits_of,
    kl_ratio,
    lines,
    newest,
    perplexity_ratio,
    quantizers,
    texts_of,
    value,
    without_model,
)
from sq.analysis.tables.protocol import describe
from sq.analysis.tables.published_block import published_table
from sq.analysis.tables.select import compared
from sq.analysis.tables.table import Table

FORMATS = ("{:.3f}", "{:.3f}", "{:.4f}", "{:.3f}")  # of the columns of _heads


def table_perplexity(frame: pd.DataFrame, *, base: str = OURS, published: bool = False, **which: Any) -> Table:
    """ppl with its ratio to full precision, KL with its ratio to a base method; 95% paired bootstrap over windows.

    Args:
        frame: of `sq.analysis.load` or `load_wandb`.
        base: method that KL is compared with.
        published: show published perplexities of this bit-width as well.
        which: experiment, overrides, column -> value: see `sq.analysis.tables.select.compared`.

    Raises:
        MissingRuns: no run has a perplexity.
        DataError: runs of different settings.
    """
    runs = compared(frame, "table_perplexity", which, task="perplexity", metric="ppl", full_precision=True)
    texts = texts_of(runs, "ppl")
    weights = quantizers(runs)
    rows: list[dict[str, Any]] = []
    for model, name in lines(runs):
        cells: dict[str, Any] = {"model": model, "method": name}
        for text in texts:
            for quantizer in weights:
                run = _run(runs, model, name, quantizer)
                other = _run(runs[runs["method"] == base], model, None, quantizer)
                head = _heads(text, quantizer, base, several=len(texts) > 1)
                cells |= dict(zip(head, _cells(run, other, text), strict=True))
        rows.append(cells)
    bits = bits_of(runs)
    heads = [_heads(text, quantizer, base, several=len(texts) > 1) for text in texts for quantizer in weights]
    models = list(dict.fromkeys(runs["model"]))
    return Table(
        without_model(rows),
        title=f"Perplexity and KL from full precision, {', '.join(models)}, {bits}",
        note=f"{describe(runs)}. KL in nats per token; intervals: 95% paired bootstrap over windows.",
        formats={name: form for head in heads for name, form in zip(head, FORMATS, strict=True)},
        published=published_table(["ppl/wikitext2", "ppl/c4"], [bits], models) if published else None,
    )


def _heads(text: str, quantizer: str, base: str, *, several: bool) -> list[str]:
    tail = f"{quantizer.upper()}, {text}" if several else quantizer.upper()
    return [f"ppl {tail}", f"ppl / fp16 {tail}", f"KL {tail}", f"KL / {base} {tail}"]


def _cells(run: pd.Series | None, base: pd.Series | None, text: str) -> list[Cell]:
    perplexity = value(run, f"ppl/{text}")
    if run is not None and run["weights"] == "none":
        return [perplexity, None, None, None]  # it is its own reference
    kl = value(run, f"kl/{text}")
    return [perplexity, perplexity_ratio(run, text), kl, kl_ratio(run, base, text)]


def _run(runs: pd.DataFrame, model: str, name: str | None, quantizer: str) -> pd.Series | None:
    found = runs[(runs["model"] == model) & runs["weights"].isin([quantizer, "none"])]
    return newest(found if name is None else found[found["row"] == name])
