"""What is damaged stands in tables as such, and nothing in a table is computed by a spreadsheet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sq import analysis
from sq.analysis.results import window_values
from sq.analysis.tables import table_bits
from sq.analysis.tables.table import Column, lay_out
from sq.errors import DataError


def test_tables_show_what_is_damaged(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    sound, torn, edited = (write_run(tmp_path, method, "rtn", [0.1, 0.2]) for method in ("rtn", "quarot", "duquant"))
    (torn / "windows.npz").write_bytes(b"PK")
    (edited / "result.json").write_text((edited / "result.json").read_text().replace("0.15", "0.14"))
    frame = analysis.load(tmp_path)
    assert dict(zip(frame["method"], frame["status"], strict=True)) == {"rtn": "finished", "quarot": "damaged"}
    assert frame.attrs["unreadable"] == {edited.name: "result.json was changed after it was written"}
    table = table_bits(frame, experiment=None)
    assert "| quarot | damaged |" in table.markdown()
    assert "Damaged: quarot" in table.note
    with pytest.raises(DataError, match=r"windows\.npz is damaged .* force=true"):
        window_values(frame.set_index("method").loc["quarot"], "kl/embedded")
    assert sound.is_dir()


def test_an_unreadable_run_of_an_experiment_is_not_called_missing(sweep: Callable[..., Path]) -> None:
    results = sweep("experiment=smoke")
    broken = next(results.glob("tiny-rtn-*"))
    (broken / "result.json").write_text("{")
    runs = analysis.with_missing(analysis.load(results), "smoke")
    assert dict(runs[["run_id", "status"]].values)[broken.name] == "damaged"


@pytest.mark.parametrize("cell", ['=HYPERLINK("x")', "+1", "-1 a", "@x"])
def test_formulas_in_cells_are_quoted(cell: str) -> None:
    table = lay_out([cell, "-", "a=b"], [Column("name", lambda row: row)], "title", "")
    assert list(table.csv().splitlines())[2:] == ["-", "a=b"]
    assert "'" + cell[0] in table.csv().splitlines()[1]
