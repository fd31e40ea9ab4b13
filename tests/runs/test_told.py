"""What a run tells while it works is what its files hold afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sq.config.compose import compose
from sq.runs.execute import execute


@pytest.mark.slow
def test_losses_and_layers_are_told_as_they_come(tmp_path: Path) -> None:
    settings = compose(["method=omniquant", "effort=0.01", "task=none", "calibration.tokens=1024",
                        "calibration.window=256", "tracker=none"])  # fmt: skip
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(kind: str, values: Mapping[str, Any]) -> None:
        written = (tmp_path / "training.jsonl").read_text().splitlines() if kind == "layer" else []
        assert kind == "training" or json.loads(written[-1])["layer"] == values["layer"], "not as they come"
        told.append((kind, dict(values)))

    done = execute(settings, tmp_path, tell)
    layers = [values for kind, values in told if kind == "layer"]
    assert [{"layer": one["layer"], "error": one["error"]} for one in layers] == done.extras["layers"]
    seconds = sum(one["weights_seconds"] for one in layers)
    assert seconds == pytest.approx(done.metrics["quantize/weights_seconds"], rel=1e-6)
    after = {(one["layer"], one["site"]): one["peak_over_rms_after"] for one in done.extras["sites"]}
    assert {(one["layer"], "down"): one["peak_over_rms/down"] for one in layers}.items() <= after.items()
    records = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [values for kind, values in told if kind == "training"] == records
    assert len(records) > len(layers)
