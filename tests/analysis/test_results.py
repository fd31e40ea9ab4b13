"""The frame of runs: failed and missing ones are visible, half-written ones are not read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sq import analysis
from sq.analysis import MissingRuns, expected, of_experiment, with_missing
from sq.analysis.results import as_text, chosen, window_values
from sq.errors import ConfigError, DataError
from sq.runs.results import read_result


def test_a_row_holds_what_result_json_holds(sweep: Callable[..., Path]) -> None:
    results = sweep("experiment=smoke", "bits=w4a4kv4")
    frame = analysis.load(results).set_index("run_id")
    assert len(frame) == 3
    for name, row in frame.iterrows():
        record = json.loads((results / str(name) / "result.json").read_text())
        for field in ("status", "model", "method", "bits", "weights", "activations", "seed", "created"):
            assert row[field] == record[field], field
        for metric, value in record["metrics"].items():
            assert row[metric] == value, metric
        assert row["calibration.tokens"] == record["config"]["calibration"]["tokens"]
        assert row["environment.cpu"] == record["environment"]["cpu"]
        assert row["folder"] == results / str(name)
    assert list(frame["created"]) == sorted(frame["created"])


def test_failed_runs_keep_their_error_and_half_written_ones_are_no_results(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    write_run(tmp_path, "hadamard", "rtn", [0.04])
    write_run(tmp_path, "broken", "rtn", [], status="failed", error="ValueError: boom")
    (tmp_path / "cut-off").mkdir()
    (tmp_path / "cut-off" / "config.yaml").write_text("seed: 0\n")
    torn = write_run(tmp_path, "torn", "rtn", [0.04]) / "result.json"
    torn.write_text(torn.read_text()[:100])
    frame = analysis.load(tmp_path).set_index("method")
    assert list(frame["status"]) == ["failed", "finished"]
    assert frame.loc["broken", "error"] == "ValueError: boom"
    with pytest.raises(DataError, match="no finished run"):
        analysis.load(tmp_path / "nothing")


def test_one_deleted_run_is_the_one_that_is_missing(sweep: Callable[..., Path]) -> None:
    results = sweep("experiment=smoke")
    whole = analysis.load(results)
    assert set(expected("smoke")["run_id"]) == set(whole["run_id"])
    assert with_missing(whole, "smoke") is whole
    gone = whole[whole["method"] == "rtn"].iloc[0]
    shutil.rmtree(gone["folder"])
    frame = with_missing(analysis.load(results), "smoke").set_index("run_id")
    assert dict(frame["status"]) == {name: "missing" if name == gone["run_id"] else "finished" for name in frame.index}
    told = frame.loc[gone["run_id"]]
    for column in ("model", "method", "bits", "weights", "activations", "seed", "task.perplexity.count"):
        assert told[column] == gone[column], column


def test_what_is_expected_is_what_the_runs_would_be_named(sweep: Callable[..., Path]) -> None:
    """Columns of a missing run equal those of the run once made, for every setting."""
    before = expected("smoke", ["bits=w3a3", "seed=1"]).set_index("run_id")
    after = analysis.load(sweep("experiment=smoke", "bits=w3a3", "seed=1")).set_index("run_id")
    assert list(before.index) == list(after.index)
    paths = [column for column in before if column.startswith(("paths.", "tracker."))]
    for column in before.columns.drop(["status", *paths]):
        assert list(map(as_text, before[column])) == list(map(as_text, after[column])), column


@pytest.mark.slow
def test_an_experiments_runs_alone_in_its_order(sweep: Callable[..., Path]) -> None:
    results = sweep("experiment=smoke")
    sweep("experiment=smoke", "bits=w3a3")
    frame = analysis.load(results).iloc[::-1]
    assert list(of_experiment(frame, "smoke", ["bits=w3a3"])["method"]) == ["fp16", "rtn", "singlequant"]
    assert set(of_experiment(frame, "smoke", ["bits=w3a3"])["bits"]) == {"W16A16KV16", "W3A3KV16"}
    with pytest.raises(MissingRuns, match=r"python run.py experiment=smoke bits=w2a16 seed=5` makes") as told:
        of_experiment(frame[frame["method"] != "fp16"], "smoke", ["bits=w2a16", "seed=5"])
    assert told.value.command == "python run.py experiment=smoke bits=w2a16 seed=5"


def test_an_unknown_experiment_or_override_is_told() -> None:
    with pytest.raises(DataError, match=r"experiment=tabel; allowed: .*table_time"):
        expected("tabel")
    with pytest.raises(ConfigError, match=r"bits=w9a9.*allowed"):
        expected("smoke", ["bits=w9a9"])


def test_settings_are_chosen_as_text(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    write_run(tmp_path, "a", "rtn", [0.1], config={"calibration": {"tokens": 4096}})
    write_run(tmp_path, "b", "rtn", [0.1], config={"calibration": {"tokens": None}})
    frame = analysis.load(tmp_path)
    assert list(chosen(frame, {"calibration.tokens": "4096", "bits": "w4a4kv16"})["method"]) == ["a"]
    assert list(chosen(frame, {"calibration.tokens": "null"})["method"]) == ["b"]
    with pytest.raises(DataError, match=r"no run has a setting 'calibration\.tokenz'"):
        chosen(frame, {"calibration.tokenz": "1"})


def test_missing_window_values_are_told(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    folder = write_run(tmp_path, "hadamard", "rtn", [0.04, 0.06])
    run = analysis.load(tmp_path).iloc[0]
    assert np.array_equal(window_values(run, "kl/embedded"), [0.04, 0.06])
    with pytest.raises(DataError, match="nll/x"):
        window_values(run, "nll/x")
    (folder / "windows.npz").unlink()
    with pytest.raises(DataError, match="kept no values by window"):
        window_values(run, "kl/embedded")
    assert read_result(folder) is not None


@pytest.mark.slow
def test_experiments_share_the_runs_that_they_have_in_common() -> None:
    """One W4A4 run of a method serves every table that shows it."""
    ours = ["method=singlequant"]
    perplexity = set(expected("table_perplexity", ours)["run_id"])
    assert len(perplexity) == 3  # fp16, RTN, GPTQ
    assert perplexity == set(expected("table_ablation", ours)["run_id"])
    assert perplexity == set(expected("comparison", [*ours, "bits=w4a4"])["run_id"])
    assert set(expected("table_bits", [*ours, "bits=w4a4"])["run_id"]) < perplexity
    assert not perplexity & set(expected("table_time", [*ours, "seed=0"])["run_id"])
