"""`sq-report`: every figure and table from the run files, and one HTML page; or the summary of one run."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sq.analysis.results import load
from sq.config.compose import compose
from sq.config.parse import options
from sq.errors import ConfigError, DataError, SQError
from sq.io import write_text

COMPLETE, FAILED, MISTAKE, INCOMPLETE = 0, 1, 2, 3
EPILOG = """exit status: 0 all there; 1 a notebook failed; 2 a mistake in the command line, or no runs at all;
3 the report is written, and it names the commands that make runs which an experiment in it lacks"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line and write what it asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="sq-report",
        description="report.html: all runs of a folder as one table, and figures (SVG, PNG, PDF) and tables "
        "(Markdown, LaTeX, CSV) of the experiments that they belong to.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--out", type=Path, default=Path("analysis/build"), help="default: analysis/build")
    parser.add_argument("--run", type=Path, metavar="RUN_DIR", help="one page about this run instead")
    parser.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="some of the notebooks, such as quality time")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="that experiments were run with, such as model=llama2_7b (in front of --only; default: those of the runs)",
    )
    parsed = parser.parse_args(arguments)
    console = Console()
    try:
        if parsed.run is not None:
            from sq.analysis.report.one_run import write_run_report

            print_written(console, write_run_report(parsed.run, parsed.out, console))
            return COMPLETE
        return write_report(parsed.results, parsed.out, parsed.overrides or None, parsed.only, console)
    except (ModuleNotFoundError, SQError, OSError) as error:
        hint = "; it needs `pip install 'singlequant[analysis]'`" if isinstance(error, ModuleNotFoundError) else ""
        print(f"sq-report: {error}{hint}", file=sys.stderr)
        return MISTAKE


def write_report(
    results: Path, out: Path, overrides: Sequence[str] | None, only: Sequence[str] | None, console: Console
) -> int:
    """Write report.html with all runs, and figures/ and tables/ of the notebooks that have runs; the exit status.

    Args:
        results, out: folders.
        overrides: that experiments were run with; None = those of the commands that made the runs.
        only: notebooks, whether they have runs or not; None = those that have some.
        console: shows what is done.

    Raises:
        DataError: no runs, or a notebook that does not exist.
        ConfigError: overrides that no task takes.
    """
    from sq.analysis.report.html import page_html
    from sq.analysis.report.notebooks import execute, found_notebooks, is_worth_it
    from sq.analysis.report.page import OUT, OVERRIDES, RESULTS
    from sq.analysis.report.write import report_body, report_facts

    start, notebooks = time.perf_counter(), found_notebooks()
    names = [path.stem for path in notebooks]
    if unknown := [name for name in only or () if name not in names]:
        raise DataError(f"--only {' '.join(unknown)}; allowed: {', '.join(names)}")
    if overrides is not None:
        check_overrides(overrides)
    runs = load(results)
    chosen = [path for path in notebooks if (path.stem in only if only else is_worth_it(path, runs, overrides))]
    out.mkdir(parents=True, exist_ok=True)
    environment = {RESULTS: str(results.resolve()), OUT: str(out.resolve()), OVERRIDES: shlex.join(overrides or ())}
    done = []
    steps = execute(chosen, environment)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for path in chosen:
            task = progress.add_task(path.stem)
            done.append(one := next(steps))
            progress.remove_task(task)
            state = "failed" if one.error else f"{len(one.missing)} to make" if one.missing else "complete"
            progress.console.print(f"{one.name:<14} {one.seconds:6.1f} s  {state}", highlight=False)
        steps.close()
    facts = report_facts(runs, results, overrides)
    others = [path for path in notebooks if path not in chosen]
    write_text(
        out / "report.html",
        page_html("SingleQuant: runs", report_body(runs, out, facts, done, others, overrides or ())),
    )
    console.print(facts["runs"], highlight=False)
    print_written(console, [out / "report.html", out / "figures", out / "tables"])
    for one in done:
        if one.error:
            print(f"sq-report: {one.name} failed: {one.error.strip().splitlines()[-1]}", file=sys.stderr)
    commands = list(dict.fromkeys(command for one in done for command in one.missing))
    if commands:
        lines = ["Runs are missing; these commands make them:", *commands]
        console.print(*lines, sep="\n  ", highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s", highlight=False)
    return FAILED if any(one.error for one in done) else INCOMPLETE if commands else COMPLETE


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse a mistake once and here, instead of in every notebook. Overrides that one task takes are enough.

    Raises:
        ConfigError: no task takes them.
    """
    mistakes = []
    for task in dict.fromkeys(["perplexity", *options("task")]):
        try:
            compose([f"task={task}", *overrides])
            return
        except ConfigError as error:
            mistakes.append(error)
    raise mistakes[0]


def print_written(console: Console, paths: Sequence[Path]) -> None:
    """Print the paths that exist."""
    console.print(*(str(path) for path in paths if path.exists()), sep="\n", highlight=False, soft_wrap=True)
