"""Print one table.

    python -m sq.analysis.tables NAME [RESULTS] [column=value ...] [format=markdown|latex|csv]

NAME: perplexity, zeroshot, time, ablation, bits, clips, fp4, main or recipes; `published` compares runs of published
settings with the literature.
RESULTS: folder of run directories (runs).
column=value: as for run.py. The table is that of `python run.py -m experiment=table_NAME column=value ...`; runs that
are not there are shown as missing.

    experiment=NAME   the runs of another experiment (comparison); `none` = all runs of the folder, and column=value
                      chooses among them, where several settings are there
    published=true    published results below ours
    metric=ppl        of bits and fp4: kl (default), ppl or top1
    base=METHOD       of perplexity, time, ablation, fp4 (kl) and recipes: what ratios are to
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from sq.analysis import tables
from sq.analysis.published.check import check_published
from sq.analysis.results import chosen, load
from sq.analysis.tables.table import SUFFIXES
from sq.errors import SQError

TABLES = {make.__name__.removeprefix("table_"): make for make in tables.TABLES}


def printed(arguments: Sequence[str]) -> str:
    """The text of the table that a command line names.

    Raises:
        SQError: an unknown name or form, runs that are not there, or runs of different settings.
    """
    words = [argument for argument in arguments if "=" not in argument]
    columns = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    name = words[0] if words else ""
    form = columns.pop("format", "markdown")
    if name not in [*TABLES, "published"] or len(words) > 2 or form not in SUFFIXES:
        raise SQError(
            f"table {name!r}, format={form}; allowed: {', '.join(TABLES)}, published; format={'|'.join(SUFFIXES)}. "
            "Write python -m sq.analysis.tables NAME [RESULTS] [column=value ...]"
        )
    frame = load(words[1] if len(words) > 1 else "runs")
    for run, reason in frame.attrs["unreadable"].items():
        print(f"{run} is damaged: {reason}", file=sys.stderr)
    if name == "published":
        return check_published(chosen(frame, columns)).text(form)
    options: dict[str, Any] = {key: columns.pop(key) for key in ("base", "metric") if key in columns}
    options["published"] = columns.pop("published", "false").lower() == "true"
    experiment = columns.pop("experiment", f"table_{name}")
    if experiment == "none":
        return TABLES[name](frame, experiment=None, **options, **columns).text(form)
    overrides = [f"{key}={value}" for key, value in columns.items()]
    return TABLES[name](frame, experiment=experiment, overrides=overrides, **options).text(form)


def main() -> int:
    """`python -m sq.analysis.tables`: print; exit status 2 for a mistake and for runs that are missing, 1 for what
    cannot be read."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) > 1 else 2
    try:
        print(printed(sys.argv[1:]), end="")
    except (SQError, OSError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 2 if isinstance(error, SQError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
