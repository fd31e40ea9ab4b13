"""All notebooks, executed as sq-report does, on small real runs: no error, all files, nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from run_files import OVERRIDES, real_runs

from sq.analysis.report import main
from sq.analysis.report.cli import INCOMPLETE
from sq.analysis.report.notebooks import ORDER, execute, found_notebooks

pytestmark = pytest.mark.slow

FIGURES = ("tradeoff", "givens", "outliers", "convergence", "art_steps", "quality_cost")
TABLES = ("perplexity", "bits", "ablation", "time")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    results = real_runs(folder / "runs")
    status = main(["--results", str(results), "--out", str(folder / "build"), *OVERRIDES])
    assert status == INCOMPLETE  # the fixture has some runs of each experiment: no notebook may fail, none is complete
    return folder / "build"


def test_every_figure_and_table_is_written(out: Path) -> None:
    figures = {f"figure_{name}.{suffix}" for name in (*FIGURES, "all_runs_tiny") for suffix in ("svg", "png", "pdf")}
    assert {path.name for path in (out / "figures").iterdir()} == figures
    tables = {f"table_{name}.{suffix}" for name in TABLES for suffix in ("md", "tex", "csv")}
    assert tables <= {path.name for path in (out / "tables").iterdir()}
    assert all(path.stat().st_size for path in [*(out / "figures").iterdir(), *(out / "tables").iterdir()])


def test_the_page_needs_nothing_from_elsewhere(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert page.count("<figure class=") == len(FIGURES) + 1  # and that of all runs
    assert page.count("<script") == page.count("<script>") == 1
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    assert page.count("<table") > len(TABLES)
    assert page.count('class="tip"') > 50  # marks that tell their numbers


def test_missing_runs_are_told_with_their_command(out: Path) -> None:
    page = (out / "report.html").read_text()
    overrides = " ".join(OVERRIDES)
    assert f"python run.py -m experiment=table_time {overrides}" in page
    assert f"python run.py -m experiment=figure_speed {overrides}" in page
    assert f"experiment=figure_convergence {overrides}" not in page  # is all there


@pytest.mark.parametrize("path", found_notebooks(), ids=lambda path: path.stem)
def test_notebooks_are_committed_without_output_and_short(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stem in ORDER
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert len(code) <= 6
    assert all(len(cell.source.splitlines()) <= 5 for cell in code)


def test_a_failure_and_a_dead_kernel_stay_in_their_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"a": ["kept = 1", "1 / 0"], "b": ["import os; os._exit(1)"], "c": ["print('kept' in globals())"]}
    for name, cells in sources.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    monkeypatch.chdir(tmp_path)
    first, second, third = execute(found_notebooks(tmp_path), {})
    assert {path.name for path in tmp_path.iterdir()} == {"a.ipynb", "b.ipynb", "c.ipynb"}
    assert "ZeroDivisionError" in (first.error or "")
    assert "kernel died" in (second.error or "")
    assert third.error is None
    assert third.cells[0].outputs[0].text == "False\n"
