"""One quality metric of every method at every bit-width with each weight quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sq.analysis.expected import command as makes
from sq.analysis.expected import of_experiment
from sq.analysis.results import MissingRuns
from sq.analysis.tables.cells import in_order, lines, newest, quantizers, texts_of, value, without_model
from sq.analysis.tables.protocol import describe, measured, one_protocol
from sq.analysis.tables.published_block import published_table
from sq.analysis.tables.table import Table
from sq.errors import DataError

METRICS = {
    "kl": ("KL from full precision, nats per token", "{:.4f}"),
    "ppl": ("Perplexity", "{:.3f}"),
    "top1": ("Share of tokens with full precision's most likely token", "{:.3f}"),
}


def table_bits(
    frame: pd.DataFrame,
    *,
    experiment: str | None = "table_bits",
    overrides: Sequence[str] = (),
    metric: str = "kl",
    published: bool = False,
    **columns: str,
) -> Table:
    """Methods by bit labels; a column for each weight quantizer at each, KV bits always in the label.

    Args:
        frame: of `sq.analysis.load` or `load_wandb`.
        experiment: whose runs are shown, missing ones as such; None = all of the frame.
        overrides: that the experiment was run with, such as "model=llama2_7b".
        metric: "kl", "ppl" or "top1".
        published: show published perplexities of these bit-widths as well.
        columns: column -> value, to choose among settings where the frame has several.

    Raises:
        MissingRuns: no run has the metric.
        DataError: an unknown metric, or runs of different settings.
    """
    if metric not in METRICS:
        raise DataError(f"metric={metric}; allowed: {', '.join(METRICS)}")
    frame = frame if experiment is None else of_experiment(frame, experiment, overrides)
    runs = measured(frame[frame["weights"] != "none"], "perplexity")
    texts = texts_of(runs, metric)
    if not texts:
        raise MissingRuns(f"no run has {metric}/<text>", makes(experiment or "table_bits", overrides))
    runs = one_protocol(runs, columns, task="perplexity", several=["bits"])
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
