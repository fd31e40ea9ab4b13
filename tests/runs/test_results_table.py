"""The printed table shows what differs and nothing that says nothing."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from sq.runs.results import Result
from sq.runs.results_table import print_results, varying_settings


def make(run_id: str = "a", **changes: Any) -> Result:
    values: dict[str, Any] = {
        "run_id": run_id, "identity": "", "status": "finished", "created": "", "command": "", "git_commit": None,
        "environment": {}, "model": "tiny", "method": "rtn", "bits": "W4A4KV16", "weights": "rtn",
        "activations": "symmetric", "seed": 0, "config": {}, "metrics": {},
    }  # fmt: skip
    return Result(**{**values, **changes})


def printed(*rows: Result, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_results(rows, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_columns_without_a_value_are_left_out_and_texts_get_their_own() -> None:
    out = printed(make(metrics={"ppl/wikitext2": 5.472, "ppl/c4": 7.26, "model/bytes": 1.35e10}))
    for word in ("ppl wikitext2", "ppl c4", "5.472", "7.260", "13.5 GB"):
        assert word in out
    for word in ("KL", "quantize", "memory", "acc"):
        assert word not in out


def test_bits_a_weight_are_shown_where_they_are_known() -> None:
    out = printed(make("a", metrics={"model/bits_per_weight": 4.0625}), make("b", bits="W16A16KV16"))
    assert "weight" in out
    assert "4.06" in out
    assert "bits/" not in printed(make("a", metrics={"ppl/c4": 1.0}))


def test_nan_and_absent_are_told_apart() -> None:
    out = printed(make("a", metrics={"ppl/c4": None, "acc/mean": 0.25}), make("b", metrics={"ppl/c4": 1.0}))
    assert "nan" in out
    assert "25.0%" in out
    assert " - " in out


def test_a_run_has_one_row_and_a_failure_its_reason() -> None:
    out = printed(make("a"), make("a"), make("b", status="failed", error="ValueError: [odd] {text}", bits="W3A3KV16"))
    assert out.count("W4A4KV16") == 1
    assert "b failed: ValueError: [odd] {text}" in out


def test_settings_that_differ_within_a_method_become_columns() -> None:
    def config(steps: int, seed: int, weights: str, block: int) -> dict[str, Any]:
        return {"seed": seed, "calibration": {"seed": seed}, "method": {"steps": steps},
                "weights": {"name": weights, "block": block}, "paths": {"results": str(seed)}}  # fmt: skip

    rows = [make("a", config=config(1, 0, "rtn", 1)), make("b", config=config(2, 1, "gptq", 128)),
            make("c", config=config(2, 0, "gptq", 128))]  # fmt: skip
    assert varying_settings(rows) == ["seed", "method.steps"], "calibration.seed follows seed; block follows weights"
    assert "steps" in printed(*rows)


def test_a_narrow_terminal_still_shows_every_number() -> None:
    metrics = {"ppl/c4": 12.345, "kl/c4": 0.1234, "top1/c4": 0.5, "quantize/seconds": 1.0, "model/bytes": 1e6}
    out = printed(make(metrics=metrics), width=100)
    for number in ("12.345", "0.1234", "50.0%", "1 MB"):
        assert number in out


def test_what_the_sizes_of_a_model_decided_stands_behind_the_method() -> None:
    assert "quarot, cross_head none" in printed(make(method="quarot", extras={"resolved": {"cross_head": "none"}}))
