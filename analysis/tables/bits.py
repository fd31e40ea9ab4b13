"""One quality metric of every method at every bit-width with each weight quantizer; labels always name the KV cache."""

from __future__ import annotations

from sq.analysis.tables.cells import measured
from sq.analysis.tables.declaration import METHOD, Declaration, Each
from sq.analysis.tables.table import Column

METRICS = {
    "kl": ("KL from full precision, nats per token", "{:.4f}"),
    "ppl": ("Perplexity", "{:.3f}"),
    "top1": ("Share of tokens with full precision's most likely token", "{:.3f}"),
}
BITS = [
    Declaration(
        experiment="table_bits",
        task="perplexity",
        metric=metric,
        several=["bits"],
        columns=[METHOD, Each(["text", "bits", "weights"], [Column("", measured(metric), form)])],
        title=f"{title}, {{models}}",
        note="Blank: not asked for.",
    )
    for metric, (title, form) in METRICS.items()
]
