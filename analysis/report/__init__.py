"""`sq-report`: figures, tables and one HTML page; notebooks call `sq.analysis.report.page.Page`."""

from __future__ import annotations

from sq.analysis.report.cli import main

__all__ = ["main"]
