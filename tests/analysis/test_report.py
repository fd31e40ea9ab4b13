"""The command line of sq-report and its page: what is refused, what is escaped."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pandas as pd
import pytest

from sq.analysis.report import main
from sq.analysis.report.cli import COMPLETE, FAILED, INCOMPLETE, MISTAKE, check_overrides
from sq.analysis.report.html import page_html, picture, table_html
from sq.analysis.report.notebooks import Executed
from sq.analysis.report.page import ABSENT, MISSING
from sq.analysis.report.sections import absent, section
from sq.analysis.tables import Table
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


def executed(*outputs: nbformat.NotebookNode, error: str | None = None) -> Executed:
    cells = [
        nbformat.v4.new_markdown_cell("# Title\n\n<script>alert(1)</script>"),
        nbformat.v4.new_code_cell("import x"),
    ]
    for number, output in enumerate(outputs):
        cells += [
            nbformat.v4.new_markdown_cell(f"## Part {number}"),
            nbformat.v4.new_code_cell("a < 1", outputs=[output]),
        ]
    return Executed("one", cells, 1.0, error, [])


def test_the_page_shows_text_as_text_and_errors_where_they_happened() -> None:
    stream = nbformat.v4.new_output("stream", text="a < b")
    body = section(executed(stream, error="\x1b[31mValueError\x1b[0m: <bad>"))
    page = page_html("a & b", body)
    assert "<script>alert" not in page
    assert "<h2>Title</h2>" in page
    assert "a &lt; b" in page
    assert "<title>a &amp; b</title>" in page
    assert "<pre>ValueError: &lt;bad&gt;</pre>" in page


def test_what_is_missing_is_folded_in_its_place_and_what_is_absent_leaves_its_heading_out() -> None:
    told = {"text/markdown": "2 of 3 runs are missing. Make them with\n\n    make\n"}
    missing = nbformat.v4.new_output("display_data", told, metadata={MISSING: "make", ABSENT: False})
    gone = nbformat.v4.new_output("display_data", {"text/markdown": "no runs"}, metadata={MISSING: "x", ABSENT: True})
    one = executed(missing, gone)
    body = section(one)
    assert "<details><summary>2 of 3 runs are missing</summary><pre>make</pre></details>" in body
    assert "Part 0" in body
    assert "Part 1" not in body
    assert absent([one]) == ["no runs"]
    assert section(executed(gone)) == ""


def test_rows_without_any_run_are_folded_below_their_table() -> None:
    rows = [
        ("rtn", 0.1, "failed"),
        ("cat", "missing", None),
        ("quarot", "missing", 0.2),
        ("<duquant>", "missing", "missing"),
    ]
    frame = pd.DataFrame(rows, columns=["method", "KL", "ppl"], dtype=object)
    page = table_html(Table(frame, "title", "note", {"KL": "{:.2f}", "ppl": "{:.2f}"}))
    table, _, below = page.partition("</table>")
    assert table.count("<tr>") == 3  # heads, rtn, quarot
    assert 'data-key="0.1"' in table
    assert "<summary>2 rows without a run</summary><p>cat, &lt;duquant&gt;</p>" in below


def test_pictures_follow_the_page_and_their_identifiers_do_not_meet() -> None:
    svg = (
        '<?xml version="1.0"?><svg width="200pt" height="100pt"><g id="a" style="fill: #222222"/><use href="#a"/></svg>'
    )
    first, second = picture(svg, "one"), picture(svg, "two")
    assert 'id="one-a"' in first
    assert 'href="#one-a"' in first
    assert 'id="two-a"' in second
    assert "var(--ink)" in first
    assert "#222222" not in first
