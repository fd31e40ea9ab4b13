"""One quality metric of every method at every bit-width with each weight quantizer."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sq.analysis.tables.cells import in_order, lines, newest, quantizers, texts_of, value, without_model
from sq.analysis.tables.protocol import describe
from sq.analysis.tables.published_block import published_table
from sq.analysis.tables.select import compared
from sq.analysis.tables.table import Table
from sq.errors import DataError

METRICS = {
    "kl": ("KL from full precision, nats per token", "{:.4f}"),
    "ppl": ("Perplexity", "{:.3f}"),
    "top1": ("Share of tokens with full precision's most likely token", "{:.3f}"),
}


def table_bits(frame: pd.DataFrame, *, metric: str = "kl", published: bool = False, **which: Any) -> Table:
    """Methods by bit labels; a column for each weight quantizer at each, KV bits always in the label.

    Args:
        frame: of `sq.analysis.load` or `load_wandb`.
        metric: "kl", "ppl" or "top1".
        published: show published perplexities of these bit-widths as well.
        which: experiment, overrides, column -> value: see `sq.analysis.tables.select.compared`.

    Raises:
        MissingRuns: no run has the metric.
        DataError: an unknown metric, or runs of different settings.
    """
    if metric not in METRICS:
        raise DataError(f"metric={metric}; allowed: {', '.join(METRICS)}")
    runs = compared(frame, "table_bits", which, task="perplexity", metric=metric, several=["bits"])
    texts = texts_of(runs, metric)
    title, form = METRICS[metric]
    labels = in_order(runs["bits"])
    heads = [
        (f"{label} {quantizer.upper()}" + (f", {text}" if len(texts) > 1 else ""), label, quantizer, text)
        for text in texts
        for label in labels
        for quantizer in quantizers(runs[runs["bits"] == label])
    ]
    rows: list[dict[str, Any]] = []
    for model, name in lines(runs):
        own = runs[(runs["model"] == model) & (runs["row"] == name)]
        cells = {
            head: value(newest(own[(own["bits"] == label) & (own["weights"] == quantizer)]), f"{metric}/{text}")
            for head, label, quantizer, text in heads
        }
        rows.append({"model": model, "method": name, **cells})
    models = list(dict.fromkeys(runs["model"]))
    return Table(
        without_model(rows),
        title=f"{title}, {', '.join(models)}",
        note=f"{describe(runs)}. Blank: not asked for.",
        formats={head[0]: form for head in heads},
        published=published_table(["ppl/wikitext2", "ppl/c4"], labels, models) if published else None,
    )
