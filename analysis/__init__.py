"""Figures and tables from result files; no model is ever loaded here."""

from __future__ import annotations

from sq.analysis.expected import expected, of_experiment, with_missing
from sq.analysis.published.check import check_published
from sq.analysis.results import MissingRuns, load
from sq.analysis.wandb_runs import load_wandb

__all__ = ["MissingRuns", "check_published", "expected", "load", "load_wandb", "of_experiment", "with_missing"]
