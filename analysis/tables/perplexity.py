"""Perplexity and KL of every method with each weight quantizer, at one bit-width."""

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
