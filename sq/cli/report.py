"""`sq-report`: figures, tables and one page from the run files (sq/analysis/report/cli.py)."""

from __future__ import annotations

import sys

from sq.analysis.report import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
