"""All runs of a folder as one table: none is left out, none of two settings are compared, failures stand beside."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_runs import write_many, write_synthetic

from sq.analysis import load
from sq.analysis.report import main
from sq.analysis.report.cli import COMPLETE
from sq.analysis.report.html import overview_html
from sq.analysis.report.one_run import write_run_report
from sq.analysis.report.overview import Overview, overview
from sq.analysis.report.write import report_facts
from sq.analysis.tables import table_bits
from sq.errors import DataError


def rows(view: Overview) -> list[dict[str, str]]:
    return [
        dict(zip(view.heads, (cell.text for cell in row), strict=True)) for group in view.groups for row in group.rows
    ]


def test_three_runs_of_an_unknown_model_are_shown_and_no_notebook_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [write_synthetic(tmp_path / "runs", "Mystery-7B", method) for method in ("fp16", "rtn", "singlequant")]

    def refuse(*_: object) -> None:
        raise AssertionError("a notebook was executed")

    monkeypatch.setattr("sq.analysis.report.notebooks._one", refuse)
    assert main(["--results", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == COMPLETE
    page = (tmp_path / "out" / "report.html").read_text()
    for folder in runs:
        record = json.loads((folder / "result.json").read_text())
        assert folder.name in page
        assert f"{record['metrics']['kl/pydoc']:.4f}" in page
    assert "Mystery-7B: W4A4KV16, rtn, symmetric, clip 1" in page
    assert "<h2>Not in this folder</h2><details><summary>" in page
    assert page.count('<tr class="run">') == 3


def test_every_run_stands_once_in_the_group_of_its_model_and_quantizer(tmp_path: Path) -> None:
    write_many(tmp_path, 40)
    frame = load(tmp_path)
    view = overview(frame)
    shown = rows(view)
    assert sorted(row["run"] for row in shown) == sorted(frame["run_id"])
    assert len({group.title for group in view.groups}) == len(view.groups) == 6
    for row in shown:
        run = frame.set_index("run_id").loc[row["run"]]
        assert (row["model"], row["bits"], row["weights"]) == (run["model"], run["bits"], run["weights"])
        assert row["clip"] == str(run["activations.clip"]).removesuffix(".0")
        assert row["KL"] == f"{run['kl/pydoc']:.4f}"
        assert row["M MAC/token"] == f"{run['transform/multiply_adds'] / 1e6:,.2f}"
    for group in view.groups:
        kl = [row[view.heads.index("KL")].key for row in group.rows]
        assert kl == sorted(kl, key=float), "the lowest KL first"


def test_ratios_are_to_singlequant_of_the_same_group(tmp_path: Path) -> None:
    folders = {method: write_synthetic(tmp_path, "M", method) for method in ("rtn", "singlequant")}
    write_synthetic(tmp_path, "M", "quarot", bits="w4a8")  # alone in its group
    kl = {name: np.load(folder / "windows.npz")["kl/pydoc"].mean() for name, folder in folders.items()}
    shown = {row["method"]: row["KL / singlequant"] for row in rows(overview(load(tmp_path)))}
    assert shown["rtn"].startswith(f"{kl['rtn'] / kl['singlequant']:.3f} (")
    assert shown["singlequant"] == "1.000 (1.000-1.000)"
    assert shown["quarot"] == ""


def test_runs_of_one_method_say_in_what_they_differ(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    for rank in (0, 16):
        write_run(tmp_path, "singlequant", "rtn", [0.1], training={"rank": rank})
    write_run(tmp_path, "rtn", "rtn", [0.2])
    assert {row["method"] for row in rows(overview(load(tmp_path)))} == {
        "rtn", "singlequant (rank=0)", "singlequant (rank=16)",
    }  # fmt: skip


def test_what_has_no_result_stands_beside_the_table(tmp_path: Path) -> None:
    write_synthetic(tmp_path, "M", "rtn")
    write_synthetic(tmp_path, "M", "quarot", status="failed", error="ValueError: <9 heads>", metrics={})
    foreign = tmp_path / "of-another-program"
    foreign.mkdir()
    (foreign / "result.json").write_text('{"accuracy": 1}')
    (tmp_path / "cut-off").mkdir()
    (tmp_path / "cut-off" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "photos").mkdir()
    end = {"by": "SIGTERM", "at": "2026-01-02T03:04:05+00:00", "host": "node7", "command": "python run.py -m seed=0,1"}
    for name in ("stopped", "M-of-a-lost-node"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
        (tmp_path / name / "interrupted.json").write_text(json.dumps(end))
    view = overview(runs := load(tmp_path))
    assert [row["method"] for row in rows(view)] == ["rtn"]
    assert {(status, name.split("-")[0]) for status, name, _ in view.beside} == {
        ("failed", "M"), ("cannot be read", "of"), ("unfinished", "cut"),
        ("interrupted", "stopped"), ("interrupted", "M"),
    }  # fmt: skip
    told = "by SIGTERM at 2026-01-02 03:04 UTC on node7; it goes on with `python run.py -m seed=0,1`"
    assert {reason for status, _, reason in view.beside if status == "interrupted"} == {told}
    assert "1 that cannot be read, 2 interrupted, 1 unfinished" in report_facts(runs, tmp_path, None)["runs"]
    with pytest.raises(DataError, match=r"stopped is a run that was interrupted by SIGTERM at 2026-01-02 03:04"):
        write_run_report(tmp_path / "stopped", tmp_path, Console())
    page = overview_html(view)
    assert "5 without a result" in page
    assert "ValueError: &lt;9 heads&gt;" in page


def test_a_failed_run_of_other_settings_does_not_keep_a_table_from_being_shown(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    for method in ("rtn", "quarot"):
        write_run(tmp_path, method, "rtn", [0.1])
    write_run(tmp_path, "quarot", "gptq", [], status="failed", error="boom", config={"calibration": {"tokens": 3}})
    write_run(tmp_path, "duquant", "rtn", [], status="failed", error="heads")
    table = table_bits(load(tmp_path), experiment=None)
    shown = {row["method"]: row["W4A4KV16 RTN"] for row in table.frame.to_dict("records")}
    assert shown == {"duquant": "failed", "quarot": 0.1, "rtn": 0.1}
    assert re.search(r"Left out, of other settings: tiny-quarot-gptq-\S+ \(failed\)\.", table.note)


def test_a_folder_of_failures_alone_is_a_page(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "runs", "M", "quarot", status="failed", error="boom", metrics={})
    assert main(["--results", str(tmp_path / "runs"), "--out", str(tmp_path)]) == COMPLETE
    page = (tmp_path / "report.html").read_text()
    assert "No run is finished" in page
    assert "boom" in page


@pytest.mark.slow
def test_two_hundred_runs_take_seconds(tmp_path: Path) -> None:
    write_many(tmp_path / "runs", 200)
    start = time.process_time()  # of this process: others on the machine do not count
    assert main(["--results", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == COMPLETE
    assert time.process_time() - start < 20
    assert (tmp_path / "out" / "report.html").read_text().count('<tr class="run">') == 200
