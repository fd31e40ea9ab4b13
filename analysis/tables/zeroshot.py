"""Zero-shot accuracy by task and on average, beside chance."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from sq.analysis.tables.cells import Value, measured
from sq.analysis.tables.declaration import METHOD, Declaration, Each
from sq.analysis.tables.table import Column

# One over the number of choices; lambada wants a word of the whole vocabulary.
CHANCE = {
    **dict.fromkeys(("next_line", "docstring", "hellaswag", "arc_easy", "arc_challenge"), 1 / 4),
    **dict.fromkeys(("piqa", "winogrande", "boolq"), 1 / 2),
    **dict.fromkeys(("lambada_openai", "lambada_standard"), 0.0),
}


def _chance(texts: Sequence[str]) -> dict[str, Value]:
    """Chance of each task; their mean where all of them are known."""
    chance: dict[str, float | None] = {task: CHANCE.get(task) for task in texts if task != "mean"}
    known = [share for share in chance.values() if share is not None]
    mean = sum(known) / len(known) if len(known) == len(chance) > 0 else None
    return {"method": "chance", "weights": "-", **chance, "mean": mean}


def _standard_error(runs: pd.DataFrame) -> str:
    errors = runs[[name for name in runs if str(name).startswith("acc_stderr/")]]
    return f"Standard error of a task: up to {errors.max().max():.1%}." if errors.size else ""


ZEROSHOT = Declaration(
    experiment="table_zeroshot",
    task="zeroshot",
    metric="acc",
    full_precision=True,
    split="weights",
    columns=(
        METHOD,
        Column("weights", lambda cell: cell.row["weights"].iloc[0].replace("none", "-")),
        Each(["text"], [Column("", measured("acc"), "{:.1%}")]),
    ),
    above=_chance,
    title="Zero-shot accuracy, {models}, {bits}",
    remark=_standard_error,
    published=["acc/mean"],
)
