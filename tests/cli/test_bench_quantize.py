"""`sq-bench quantize` on a random model of two layers: the parts add up, ratios are those of the seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sq.cli import bench, bench_quantize
from sq.cli.bench_quantize import FLOOR, Case, extrapolated

TINY = Case(
    ("model=random_tiny", "calibration.tokens=256", "calibration.window=64"),
    2,
    {
        "singlequant": ("method=singlequant", "weights=rtn"),
        "quarot gptq": ("method=quarot", "weights=gptq"),
        "flatquant": ("method=flatquant", "weights=rtn", "effort=0.07"),
    },
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_quantize, "CASES", {"tiny": TINY})


@pytest.mark.usefixtures("tiny")
def test_the_table_and_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "quantize.json"
    assert bench.main(["quantize", "--rounds", "1", "--layers", "1", "--threads", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(out.read_text())["cases"]["tiny"]["rows"]
    assert list(rows) == [FLOOR, *TINY.rows]
    for name, row in rows.items():
        assert name in printed
        parts = [value for part, value in row["seconds"].items() if part not in ("total", "peak")]
        assert row["seconds"]["total"] == pytest.approx(sum(parts))
        whole = row["seconds"]["total"] + row["seconds"].get("transform", 0) * (1 / row["effort"] - 1)
        assert row["published"] == pytest.approx(whole)
        assert row["over_floor"] == pytest.approx(whole / rows[FLOOR]["seconds"]["total"])
        assert row["over_ours"] == pytest.approx(whole / rows["singlequant"]["seconds"]["total"])
    assert rows["flatquant"]["effort"] == 0.07
    assert rows["singlequant"]["over_ours"] == 1
    assert "1 layer, " not in printed
    assert "for 1 layer;" in printed


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "tiny", "--only", "nothing"], "rows: singlequant"),
        (["--rounds", "0"], "--rounds is 0"),
        (["method=nonsense"], "nonsense"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["quantize", *arguments, "--out", str(tmp_path / "out.json")]) == 2
    assert message in capsys.readouterr().err


def test_expected_seconds_grow_with_the_model_and_the_forwards() -> None:
    found = extrapolated()
    small, large = found["random_llama2_7b rtn"], found["random_llama2_70b rtn"]
    assert small.read == pytest.approx(2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008) / 5e9)
    assert large.total > 5 * small.total
    assert found["random_llama2_7b gptq"].forward == pytest.approx(9 * small.forward)  # 144 windows and 16
    assert small.moments == 0 < found["random_llama2_7b gptq"].moments
