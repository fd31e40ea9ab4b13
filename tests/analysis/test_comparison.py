"""The tables of all methods, on hand-written run directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sq.analysis.comparison import comparison_table
from sq.errors import DataError


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_column_for_each_bit_width_and_weight_quantizer(tmp_path: Path, write_run: Callable[..., None]) -> None:
    for bits, factor in (("W4A4KV16", 1), ("W4A4KV4", 2)):
        for weights in ("rtn", "gptq"):
            write_run(tmp_path, "singlequant", weights, [0.04 * factor, 0.06 * factor], bits=bits)
    write_run(tmp_path, "quarot", "rtn", [0.07], bits="W4A4KV16")
    write_run(tmp_path, "omniquant", "rtn", [], bits="W4A4KV4", status="failed", error="diverged")
    table = comparison_table(tmp_path)
    assert cells(table, "method")[1:] == ["W4A4KV16 RTN", "W4A4KV16 GPTQ", "W4A4KV4 RTN", "W4A4KV4 GPTQ"]
    assert cells(table, "singlequant")[1:] == ["0.0500", "0.0500", "0.1000", "0.1000"]
    assert cells(table, "quarot")[1:] == ["0.0700", "", "", ""]
    assert cells(table, "omniquant")[1:] == ["", "", "failed", ""]


def test_a_longer_training_is_a_row_of_its_own(tmp_path: Path, write_run: Callable[..., None]) -> None:
    for epochs, kl in ((20, 0.2), (5, 0.3)):
        write_run(tmp_path, "omniquant", "rtn", [kl], training={"epochs": epochs})
    write_run(tmp_path, "spinquant", "rtn", [0.06], training={"steps": 25})
    names = [line.split("|")[1].strip() for line in comparison_table(tmp_path).splitlines()[2:]]
    assert names == ["omniquant, 5 epochs", "omniquant, 20 epochs", "spinquant, 25 steps"]
    assert cells(comparison_table(tmp_path), "omniquant, 20 epochs")[1] == "0.2000"


def test_times_are_medians_and_ratios_to_ours(tmp_path: Path, write_run: Callable[..., None]) -> None:
    def timed(method: str, seed: int, seconds: float, memory: float) -> None:
        parts = {f"quantize/{part}_seconds": seconds / 4 for part in ("capture", "transform", "weights")}
        metrics = {**parts, "quantize/seconds": seconds, "quantize/peak_memory_bytes": memory * 1e6}
        write_run(tmp_path, method, "rtn", [], metrics=metrics, seed=seed)

    for seed, seconds in enumerate((9.0, 2.0, 2.2)):
        timed("singlequant", seed, seconds, 500)
        timed("spinquant", seed, 100 * seconds, 750)
    table = comparison_table(tmp_path, table="time")
    assert cells(table, "singlequant")[1:4] == ["3", "2.20", "1.00"]
    assert cells(table, "spinquant")[1:4] == ["3", "220.00", "100.00"]
    assert cells(table, "spinquant")[-2:] == ["750 MB", "1.50"]


def test_what_is_missing_or_mixed_is_told(tmp_path: Path, write_run: Callable[..., None]) -> None:
    write_run(tmp_path, "quarot", "rtn", [0.07])
    with pytest.raises(DataError, match="experiment=table_time"):
        comparison_table(tmp_path, table="time")
    with pytest.raises(DataError, match="allowed: table=quality"):
        comparison_table(tmp_path, table="speed")
    with pytest.raises(DataError, match="experiment=comparison"):
        comparison_table(tmp_path, metric="ppl")
    write_run(tmp_path, "quarot", "rtn", [0.07], seed=1)
    with pytest.raises(DataError, match="seed of 0, 1; choose one"):
        comparison_table(tmp_path)
    assert cells(comparison_table(tmp_path, seed="1"), "quarot")[1] == "0.0700"
