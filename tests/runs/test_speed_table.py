"""The table of speeds: one row a kind, ratios to bf16 of the same run, random weights named."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from sq.runs.results import Result
from sq.runs.speed_table import speed_tables


def make(**changes: Any) -> Result:
    facts = {"device": "GPU", "random_weights": True, "prompt": 64, "new_tokens": 8, "batches": [2]}
    metrics = {"speed/prefill/bf16/b2": 1000.0, "speed/prefill/packed/b2": 1510.0, "speed/decode/packed/b2": 12.0}
    sizes = {f"speed/{part}_bytes/{kind}": 2.5e6 for part in ("linear", "weight") for kind in ("bf16", "packed")}
    values: dict[str, Any] = {
        "run_id": "a", "identity": "", "status": "finished", "created": "", "command": "", "git_commit": None,
        "environment": {}, "model": "random_tiny", "method": "rtn", "bits": "W4A4KV16", "weights": "rtn",
        "activations": "symmetric", "seed": 0, "config": {}, "metrics": metrics | sizes,
        "extras": {"speed": facts | {"kinds": ["bf16", "packed"]}},
    }  # fmt: skip
    return Result(**{**values, **changes})


def test_rates_and_ratios_to_bf16_of_the_same_run() -> None:
    (table,) = speed_tables([make(), make(extras={})])
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    out = console.file.getvalue()
    assert "GPU, random weights: prompt 64, then 8 tokens" in out
    rows = [line.split() for line in out.splitlines() if line.split()[:2] == ["random_tiny", "rtn"]]
    assert rows == [
        ["random_tiny", "rtn", "bf16", "1,000", "-", "2.5", "2.5"],
        ["random_tiny", "rtn", "packed", "1,510", "(1.51x)", "12", "2.5", "2.5"],
    ]


def test_runs_without_speeds_have_no_table() -> None:
    assert speed_tables([make(extras={}), make(extras={"speed": None})]) == []
