"""`sq-report`: figures, tables and one page from the run files (sq/analysis/report/cli.py)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sq.cli.status import ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line and write what it asks for; return the exit status."""
    from sq.analysis.report import main as write

    return ended("sq-report", lambda: write(arguments))


if __name__ == "__main__":
    sys.exit(main())
