"""The tables: each function takes a frame of runs and returns a `Table` as Markdown, LaTeX or CSV.

`table_bits(load("runs"), metric="ppl")` shows the runs of `experiment=table_bits`; `overrides=["model=llama2_7b"]`
those of the sweep with overrides; `experiment=None` all of the frame, and `bits="W4A4KV4"` chooses among them.
Failed and missing runs say so in their cells. Runs of different settings are refused, not mixed.
"""

from __future__ import annotations

from sq.analysis.tables.ablation import table_ablation
from sq.analysis.tables.bits import table_bits
from sq.analysis.tables.perplexity import table_perplexity
from sq.analysis.tables.table import Table
from sq.analysis.tables.timing import table_time
from sq.analysis.tables.zeroshot import table_zeroshot

__all__ = ["Table", "table_ablation", "table_bits", "table_perplexity", "table_time", "table_zeroshot"]
