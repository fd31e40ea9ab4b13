"""Figures and tables from result files; no model is ever loaded here."""

from __future__ import annotations

from sq.analysis.results import load

__all__ = ["load"]
