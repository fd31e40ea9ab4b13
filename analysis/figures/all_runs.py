"""Quality against cost of all runs of one model, whatever experiment made them."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from sq.analysis.figures.look import styled
from sq.analysis.figures.points import points_of
from sq.analysis.figures.quality_cost import draw_quality_cost
from sq.analysis.results import as_text
from sq.analysis.tables.order import texts_of

EVALUATED = ("task.perplexity.window", "task.perplexity.count")
QUANTIZER = ("bits", "weights", "activations")


@styled
def figure_all_runs(runs: pd.DataFrame) -> Figure | None:
    """KL against online multiply-adds and quantization seconds; None where fewer than two runs can be compared.

    Shown are the finished runs on the text, window and count that most of them have: numbers of two texts are not put
    on one axis. Where bits or quantizers differ between runs, labels say which.
    """
    runs = runs[runs["status"] == "finished"]
    if "quantize/seconds" not in runs or "transform/multiply_adds" not in runs:
        return None
    runs = runs[runs["quantize/seconds"].notna() & runs["transform/multiply_adds"].notna()]
    columns = [f"kl/{text}" for text in texts_of(runs, "kl")]
    if not columns:
        return None
    column = max(columns, key=lambda name: runs[name].count())
    runs = runs[runs[column].gt(0)]  # a logarithm has no zero
    evaluated = [tuple(as_text(run.get(name)) for name in EVALUATED) for _, run in runs.iterrows()]
    most = max(evaluated, key=evaluated.count, default=())
    runs = runs[[one == most for one in evaluated]]
    if len(runs) < 2:
        return None
    points = points_of(runs.assign(quality=runs[column].astype(float)), "kl")
    differing = [name for name in QUANTIZER if runs[name].nunique() > 1]
    if differing:
        words = [" ".join(str(run[name]) for name in differing) for _, run in runs.iterrows()]
        points["label"] = [f"{label} ({word})" for label, word in zip(points["label"], words, strict=True)]
    points.attrs["title"] = f"{runs['model'].iat[0]}, {column.removeprefix('kl/')}, {len(runs)} runs"
    return draw_quality_cost(points, "kl")
