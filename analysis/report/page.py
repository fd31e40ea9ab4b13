"""What a notebook's cells call: the runs, and figures and tables that are shown and written in one go."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from sq.analysis.asked import SHARE, Asked, asked
from sq.analysis.expected import command, of_experiment
from sq.analysis.figures import save
from sq.analysis.report.html import table_html
from sq.analysis.results import MissingRuns, load
from sq.analysis.tables.table import Table
from sq.errors import ConfigError, DataError

RESULTS, OUT, OVERRIDES = "SQ_RESULTS", "SQ_OUT", "SQ_OVERRIDES"
# Keys of an output's metadata. MISSING: the command that makes the runs; ABSENT: nothing of the kind is there, and
# nobody asked for it, so that a report folds it away.
MISSING, ABSENT = "sq_missing", "sq_absent"
MOST = 3  # sets of overrides of one experiment that are shown, the newest


class Page:
    """Runs and places of one notebook, from the environment that `sq-report` sets or from the defaults.

    `figure` and `table` call a function of `sq.analysis.figures` or `.tables`. The experiment and the files have its
    name; options are further arguments of it, and those that are texts are added to the files' names.

    Args:
        results: folder of runs; None takes SQ_RESULTS, else `runs` here or one folder up.
        out: where figures/ and tables/ are written; None takes SQ_OUT, else `build` beside the notebook.
        overrides: that the experiments were run with, such as ["model=llama2_7b"]; None takes SQ_OVERRIDES, and where
            that is not set either, those of the commands that made the runs (`sq.analysis.asked`).
    """

    def __init__(
        self, results: str | Path | None = None, out: str | Path | None = None, overrides: Sequence[str] | None = None
    ) -> None:
        here = next((name for name in ("runs", "../runs") if Path(name).is_dir()), "runs")
        self.results = Path(results or os.environ.get(RESULTS) or here)
        self.out = Path(out or os.environ.get(OUT) or "build")
        typed = os.environ.get(OVERRIDES)
        self.overrides = list(overrides) if overrides is not None else shlex.split(typed) if typed else None

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The frame of all runs (`sq.analysis.load`)."""
        return load(self.results)

    def figure(self, draw: Callable[..., Figure], **options: Any) -> None:
        """Show a figure and write figures/<name>.svg, .png and .pdf, or show the command that makes its runs."""

        def show(figure: Figure, name: str) -> None:
            paths = save(figure, self.out / "figures", name)
            told = f"{name}: {', '.join(map(str, paths))}"
            self._show({"image/svg+xml": paths[0].read_text(encoding="utf-8"), "text/plain": told})

        self._each(draw, options, show)

    def table(self, make: Callable[..., Table], *, all_runs: bool = False, **options: Any) -> None:
        """Show a table and write tables/<name>.md, .tex and .csv, or show the command that makes its runs.

        `all_runs`: it reads every run of the folder, instead of those of an experiment.
        """

        def show(table: Table, name: str) -> None:
            table.save(self.out / "tables", name)
            self._show({"text/html": table_html(table), "text/markdown": table.markdown(), "text/plain": table.title})

        if not all_runs:
            self._each(make, options, show)
        elif (table := make(self.runs, **options)).frame.empty:
            self._announce(f"{table.title}: {table.note}", absent=True)
        else:
            show(table, _name(make, options))

    def _each(self, make: Callable[..., Any], options: dict[str, Any], show: Callable[[Any, str], None]) -> None:
        """Make and show what there is for each set of overrides."""
        experiment = str(options.get("experiment") or make.__name__)
        sets = asked(self.runs, experiment, self.overrides)
        if not sets:
            self._announce(f"{experiment}: no runs, or too few", command(experiment, self.overrides or ()), absent=True)
        for one in sets[:-MOST]:
            text = f"{experiment} with other overrides; show it with `sq-report {shlex.join(one.overrides)}`"
            self._announce(text, absent=True)
        names = set()
        for one in sets[-MOST:]:
            if (made := self._made(make, experiment, one, options)) is not None:
                name = _name(make, options)
                if name in names:
                    name = f"{name}_{re.sub(r'[^A-Za-z0-9.]+', '-', ' '.join(one.overrides))[:60]}"
                names.add(name)
                if len(sets) > 1 and one.overrides:
                    text = f"With `{shlex.join(one.overrides)}`:"
                    self._show({"text/markdown": text, "text/plain": text})
                show(made, name)
                self._incomplete(experiment, one)

    def _made(self, make: Callable[..., Any], experiment: str, one: Asked, options: dict[str, Any]) -> Any:
        """A figure or table; None where its runs are not there or do not go together, after that was told."""
        makes = command(experiment, one.overrides)
        try:
            made = make(self.runs, overrides=one.overrides, **options)
            done, wanted = self._finished(experiment, one)
            if one.named or done >= SHARE * wanted:
                return made
            return self._announce(f"{experiment}: {done} of {wanted} runs are there", makes, absent=True)
        except MissingRuns as error:
            return self._announce(f"{experiment}: {error.what}", error.command, absent=not one.named)
        except ConfigError as error:  # an override or a model that the experiment does not take, or is not installed
            return self._announce(f"{experiment}: {error.problems[0]}", makes, absent=True)
        except DataError as error:
            return self._announce(f"{experiment} cannot be shown: {error}")

    def _finished(self, experiment: str, one: Asked) -> tuple[int, int]:
        """How many runs of the experiment are finished, and how many it has."""
        runs = self._runs_of(experiment, one)
        return (int((runs["status"] == "finished").sum()), len(runs)) if len(runs) else (1, 1)

    def _runs_of(self, experiment: str, one: Asked) -> pd.DataFrame:
        """Runs of an experiment; none for a figure that shows those of another one."""
        try:
            return of_experiment(self.runs, experiment, one.overrides)
        except MissingRuns:
            return self.runs.iloc[:0]

    def _incomplete(self, experiment: str, one: Asked) -> None:
        """Show how many runs of the experiment are not there."""
        done, wanted = self._finished(experiment, one)
        if reason := self._runs_of(experiment, one).attrs.get("uncomposed"):
            self._announce(
                f"{experiment}: only runs that its command made are shown; what else it has is unknown: {reason}"
            )
        if done < wanted:
            self._announce(
                f"{wanted - done} of {wanted} runs are missing or failed", command(experiment, one.overrides)
            )

    def _announce(self, what: str, makes: str = "", *, absent: bool = False) -> None:
        text = f"{what.rstrip('.')}." + (f" Make them with\n\n    {makes}\n" if makes else "\n")
        self._show({"text/markdown": text, "text/plain": text}, {MISSING: makes, ABSENT: absent})

    @staticmethod
    def _show(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
        display(data, raw=True, metadata=metadata or {})


def _name(function: Callable[..., object], options: dict[str, Any]) -> str:
    return "_".join([function.__name__, *(value for value in options.values() if isinstance(value, str))])
