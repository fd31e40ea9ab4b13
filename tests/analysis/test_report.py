"""The command line of sq-report and its page: what is refused, what is escaped."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from sq.analysis.report import main
from sq.analysis.report.cli import COMPLETE, FAILED, INCOMPLETE, MISTAKE, check_overrides
from sq.analysis.report.html import report_html
from sq.analysis.report.notebooks import Executed
from sq.analysis.report.page import MISSING
from sq.errors import ConfigError


def test_exit_statuses_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "0 all there; 1 a notebook failed; 2 a mistake" in shown
    assert (COMPLETE, FAILED, MISTAKE, INCOMPLETE) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--results", "nowhere"], "python run.py paths.results=nowhere"),
        (["--run", "nowhere"], "give the directory of a run"),
        (["--only", "qualty"], "allowed: quality, real, ablation"),
        (["model=llama9"], "model=llama9; allowed"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == MISTAKE
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_overrides_may_be_those_of_one_task() -> None:
    check_overrides(["task.activations.layer=2"])
    with pytest.raises(ConfigError, match="modle"):
        check_overrides(["modle=tiny"])


def test_the_page_shows_text_as_text_and_errors_where_they_happened() -> None:
    note = nbformat.v4.new_output("display_data", {"text/markdown": "**Not all there**"}, metadata={MISSING: "make"})
    code = nbformat.v4.new_code_cell("x = '<script>'", outputs=[nbformat.v4.new_output("stream", text="a < b"), note])
    cells = [nbformat.v4.new_markdown_cell("# Title\n\n<script>alert(1)</script>"), code]
    page = report_html("a & b", {"runs": "<3>"}, [Executed("one", cells, 1.0, "\x1b[31mValueError\x1b[0m: <bad>", [])])
    assert "<script>" not in page
    assert "<h2>Title</h2>" in page
    assert "a &lt; b" in page
    assert "<title>a &amp; b</title>" in page
    assert "&lt;3&gt;" in page
    assert '<div class="missing"><p><strong>Not all there</strong></p>' in page
    assert "<pre>ValueError: &lt;bad&gt;</pre>" in page
