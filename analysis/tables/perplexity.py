"""Quality of every method with each weight quantizer: perplexity and KL at one bit-width, and one metric at all."""

from __future__ import annotations

from sq.analysis.tables.cells import kl_over_base, measured, perplexity_over_full_precision
from sq.analysis.tables.declaration import METHOD, OURS, Declaration, Each
from sq.analysis.tables.table import Column

PERPLEXITY = Declaration(
    experiment="table_perplexity",
    task="perplexity",
    metric="ppl",
    full_precision=True,
    base=OURS,
    columns=(
        METHOD,
        Each(
            ("text", "weights"),
            (
                Column("ppl", measured("ppl"), "{:.3f}"),
                Column("ppl / fp16", perplexity_over_full_precision, "{:.3f}"),
                Column("KL", measured("kl"), "{:.4f}"),
                Column("KL / {base}", kl_over_base, "{:.3f}"),
            ),
        ),
    ),
    title="Perplexity and KL from full precision, {models}, {bits}",
    note="KL in nats per token; intervals: 95% paired bootstrap over windows.",
)
# Labels of bits always name the KV cache.
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
