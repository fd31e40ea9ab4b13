"""What a notebook's cells call: the runs, and figures and tables that are shown and written in one go."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from sq.analysis.expected import command, of_experiment
from sq.analysis.figures import save
from sq.analysis.results import MissingRuns, load
from sq.analysis.tables.table import Table
from sq.errors import ConfigError

RESULTS, OUT, OVERRIDES = "SQ_RESULTS", "SQ_OUT", "SQ_OVERRIDES"
MISSING = "sq_missing"  # key of an output's metadata: the command that makes the runs


class Page:
    """Runs and places of one notebook, from the environment that `sq-report` sets or from the defaults.

    `figure` and `table` call a function of `sq.analysis.figures` or `.tables`. The experiment and the files have its
    name; options are further arguments of it, and those that are texts are added to the files' names.

    Args:
        results: folder of runs; None takes SQ_RESULTS, else `runs` here or one folder up.
        out: where figures/ and tables/ are written; None takes SQ_OUT, else `build` beside the notebook.
        overrides: that the experiments were run with, such as ["model=llama2_7b"]; None takes SQ_OVERRIDES.
    """

    def __init__(
        self, results: str | Path | None = None, out: str | Path | None = None, overrides: Sequence[str] | None = None
    ) -> None:
        here = next((name for name in ("runs", "../runs") if Path(name).is_dir()), "runs")
        self.results = Path(results or os.environ.get(RESULTS) or here)
        self.out = Path(out or os.environ.get(OUT) or "build")
        self.overrides = shlex.split(os.environ.get(OVERRIDES, "")) if overrides is None else list(overrides)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The frame of all runs (`sq.analysis.load`)."""
        return load(self.results)

    def figure(self, draw: Callable[..., Figure], **options: Any) -> None:
        """Show a figure and write figures/<name>.svg and .png, or show the command that makes its runs."""
        name = _name(draw, options)
        if (figure := self._made(draw, overrides=self.overrides, **options)) is None:
            return
        svg, png = save(figure, self.out / "figures", name)
        self._show({"image/svg+xml": svg.read_text(encoding="utf-8"), "text/plain": f"{name}: {svg}, {png}"})
        self._incomplete(draw.__name__)

    def table(self, make: Callable[..., Table], *, all_runs: bool = False, **options: Any) -> None:
        """Show a table and write tables/<name>.md, .tex and .csv, or show the command that makes its runs.

        `all_runs`: it reads every run of the folder, instead of those of an experiment.
        """
        name = _name(make, options)
        if (table := self._made(make, **({} if all_runs else {"overrides": self.overrides}), **options)) is None:
            return
        table.save(self.out / "tables", name)
        self._show({"text/markdown": table.markdown(), "text/plain": table.title})
        if not all_runs:
            self._incomplete(make.__name__)

    def _made(self, make: Callable[..., Any], **options: Any) -> Any:
        """A figure or table; None where its runs are not there, after their command was shown."""
        try:
            return make(self.runs, **options)
        except MissingRuns as error:
            return self._announce(str(error), error.command)
        except ConfigError as error:  # overrides were checked: the experiment needs what is not installed here
            return self._announce(error.problems[0], command(make.__name__, self.overrides))

    def _incomplete(self, experiment: str) -> None:
        """Show how many runs of the experiment are not there."""
        runs = of_experiment(self.runs, experiment, self.overrides)
        if absent := int((runs["status"] != "finished").sum()):
            self._announce(f"{absent} of {len(runs)} runs are missing or failed", command(experiment, self.overrides))

    def _announce(self, what: str, command: str) -> None:
        text = f"**Not all there:** {what.split(';')[0]}. Make them with\n\n    {command}\n"
        self._show({"text/markdown": text, "text/plain": text}, {MISSING: command})

    @staticmethod
    def _show(data: dict[str, str], metadata: dict[str, str] | None = None) -> None:
        display(data, raw=True, metadata=metadata or {})


def _name(function: Callable[..., object], options: dict[str, Any]) -> str:
    return "_".join([function.__name__, *(value for value in options.values() if isinstance(value, str))])
