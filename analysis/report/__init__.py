"""`sq-report`, and the `Page` that notebooks call. Figures are imported only after the command line was parsed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sq.analysis.report.cli import main

if TYPE_CHECKING:
    from sq.analysis.report.page import Page as Page

__all__ = ["Page", "main"]


def __getattr__(name: str) -> Any:
    if name == "Page":
        from sq.analysis.report.page import Page

        return Page
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
