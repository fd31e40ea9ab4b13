"""Zero-shot accuracy by task and on average, beside chance."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sq.analysis.tables.cells import bits_of, lines, newest, texts_of, value, without_model
from sq.analysis.tables.protocol import describe
from sq.analysis.tables.published_block import published_table
from sq.analysis.tables.select import compared
from sq.analysis.tables.table import Table

# One over the number of choices; lambada asks for a word of the whole vocabulary.
CHANCE = {
    **dict.fromkeys(("next_line", "docstring", "hellaswag", "arc_easy", "arc_challenge"), 1 / 4),
    **dict.fromkeys(("piqa", "winogrande", "boolq"), 1 / 2),
    **dict.fromkeys(("lambada_openai", "lambada_standard"), 0.0),
}


def table_zeroshot(frame: pd.DataFrame, *, published: bool = False, **which: Any) -> Table:
    """Accuracy of each method with each weight quantizer; the first row is chance.

    Args:
        frame: of `sq.analysis.load` or `load_wandb`.
        published: show published averages of this bit-width as well.
        which: experiment, overrides, column -> value: see `sq.analysis.tables.select.compared`.

    Raises:
        MissingRuns: no run has an accuracy.
        DataError: runs of different settings.
    """
    runs = compared(frame, "table_zeroshot", which, task="zeroshot", metric="acc", full_precision=True)
    tasks = texts_of(runs, "acc")
    tasks = [*(task for task in tasks if task != "mean"), "mean"]
    chance = {task: CHANCE.get(task) for task in tasks[:-1]}
    known = [share for share in chance.values() if share is not None]
    chance["mean"] = sum(known) / len(known) if len(known) == len(chance) else None
    models = list(dict.fromkeys(runs["model"]))
    rows: list[dict[str, Any]] = [{"model": models[0], "method": "chance", "weights": "-", **chance}]
    for model, name in lines(runs):
        own = runs[(runs["model"] == model) & (runs["row"] == name)]
        for weights in dict.fromkeys(own["weights"]):
            run = newest(own[own["weights"] == weights])
            cells = {task: value(run, f"acc/{task}") for task in tasks}
            rows.append({"model": model, "method": name, "weights": weights.replace("none", "-"), **cells})
    bits = bits_of(runs)
    errors = runs[[f"acc_stderr/{task}" for task in tasks if f"acc_stderr/{task}" in runs]]
    spread = f" Standard error of a task: up to {errors.max().max():.1%}." if errors.size else ""
    return Table(
        without_model(rows),
        title=f"Zero-shot accuracy, {', '.join(models)}, {bits}",
        note=f"{describe(runs)}.{spread}",
        formats=dict.fromkeys(tasks, "{:.1%}"),
        published=published_table(["acc/mean"], [bits], models) if published else None,
    )
