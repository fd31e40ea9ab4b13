"""The tables: each function takes a frame of runs and returns a `Table` as Markdown, LaTeX or CSV.

`table_bits(load("runs"), metric="ppl")` shows the runs of `experiment=table_bits`; `overrides=["model=llama2_7b"]`
those of the sweep with overrides; `experiment=None` all of the frame, and `bits="W4A4KV4"` chooses among them.
Failed and missing runs say so in their cells. Runs of different settings are refused, not mixed. `render` has all
arguments and errors.
"""

from __future__ import annotations

from sq.analysis.tables.declared import ABLATION, BITS, CLIPS, MAIN, PERPLEXITY, TIME, ZEROSHOT
from sq.analysis.tables.fp4 import FP4
from sq.analysis.tables.recipes import RECIPES
from sq.analysis.tables.render import table_of
from sq.analysis.tables.table import Table

table_perplexity = table_of(PERPLEXITY)
table_zeroshot = table_of(ZEROSHOT)
table_time = table_of(TIME)
table_ablation = table_of(ABLATION)
table_bits = table_of(*BITS)
table_clips = table_of(CLIPS)
table_fp4 = table_of(*FP4)
table_main = table_of(MAIN)
table_recipes = table_of(RECIPES)
TABLES = (
    table_perplexity,
    table_zeroshot,
    table_time,
    table_ablation,
    table_bits,
    table_clips,
    table_fp4,
    table_main,
    table_recipes,
)

__all__ = [
    "TABLES",
    "Table",
    "table_ablation",
    "table_bits",
    "table_clips",
    "table_fp4",
    "table_main",
    "table_perplexity",
    "table_recipes",
    "table_time",
    "table_zeroshot",
]
