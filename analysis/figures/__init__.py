"""The paper's figures and one of our own; each function returns a matplotlib figure.

Arguments of all: `frame` of `sq.analysis.load`, and `overrides` that the experiment of the figure's name was run with,
such as "model=llama2_7b". Where the frame lacks the runs, `MissingRuns` carries the command that makes them.
"""

from __future__ import annotations

from sq.analysis.figures.art_steps import figure_art_steps
from sq.analysis.figures.convergence import figure_convergence
from sq.analysis.figures.givens import figure_givens
from sq.analysis.figures.look import save
from sq.analysis.figures.outliers import figure_outliers
from sq.analysis.figures.quality_cost import figure_quality_cost, figure_tradeoff
from sq.analysis.figures.speed import figure_speed

__all__ = [
    "figure_art_steps",
    "figure_convergence",
    "figure_givens",
    "figure_outliers",
    "figure_quality_cost",
    "figure_speed",
    "figure_tradeoff",
    "save",
]
