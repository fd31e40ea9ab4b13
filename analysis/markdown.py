"""Markdown tables, and the command line of the modules that print them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from sq.errors import DataError


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table; the first `texts` columns are aligned to the left, numbers to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * texts + "---:|" * (len(heads) - texts)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def main(table: Callable[..., str], arguments: Sequence[str]) -> None:
    """`python -m sq.analysis.<module> [folder] [key=value ...]`: print a table, or end with what is missing."""
    folder = next((argument for argument in arguments if "=" not in argument), "runs")
    settings = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    try:
        print(table(folder, **settings))
    except DataError as error:
        sys.exit(str(error))
