"""The run directory: what it holds, when it is reused, and what a failure leaves."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from sq.config.compose import compose
from sq.config.parse import parse
from sq.config.settings import ExperimentSettings
from sq.runs.experiment import experiment, run
from sq.runs.results import read_result
from sq.runs.runid import run_id

FIELDS = {
    "schema", "run_id", "status", "created", "command", "git_commit", "environment", "model", "method", "bits",
    "weights", "activations", "seed", "config", "metrics",
}  # fmt: skip


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("FAKE_CALLS", str(path))
    return path


@pytest.fixture
def settings(tmp_path: Path, fake_executor: str, calls: Path) -> ExperimentSettings:
    return compose(["method=rtn", "tracker=none", f"paths.results={tmp_path}/runs", f"executor='{fake_executor}'"])


def count(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def test_the_run_directory_is_complete(settings: ExperimentSettings) -> None:
    result = run(settings)
    folder = settings.paths.results / run_id(settings)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "log.txt", "result.json", "windows.npz"]
    content = json.loads((folder / "result.json").read_text())
    assert set(content) >= FIELDS
    assert (content["status"], content["bits"], content["weights"]) == ("finished", "W4A4KV16", "rtn")
    assert content["metrics"]["kl/embedded"] == 0.0432
    assert set(content["environment"]) >= {"python", "torch", "transformers", "triton", "lm_eval", "cpu", "gpu"}
    assert datetime.fromisoformat(content["created"]) <= datetime.now(timezone.utc)
    assert "measuring rtn" in (folder / "log.txt").read_text()
    np.testing.assert_array_equal(np.load(folder / "windows.npz")["nll"], np.arange(4.0))
    assert read_result(folder) == result


def test_config_yaml_makes_the_same_run_again(settings: ExperimentSettings) -> None:
    result = run(settings)
    stored = OmegaConf.load(settings.paths.results / result.run_id / "config.yaml")
    assert isinstance(stored, DictConfig)
    assert parse(stored) == settings
    assert parse(OmegaConf.create(result.config)) == settings


def test_references_come_first_with_plain_weights(settings: ExperimentSettings) -> None:
    asked = compose(["method=rtn", "weights=gptq", "tracker=none", f"paths.results={settings.paths.results}",
                     f"executor='{settings.executor}'"])  # fmt: skip
    rows = [(r.method, r.bits, r.weights) for r in experiment(asked)]
    assert rows == [("fp16", "W16A16KV16", "none"), ("rtn", "W4A4KV16", "rtn"), ("rtn", "W4A4KV16", "gptq")]
    assert [r.method for r in experiment(settings)] == ["fp16", "rtn"], "the asked run is a reference itself: one row"


def test_a_finished_run_is_reused_and_force_recomputes_it(settings: ExperimentSettings, calls: Path) -> None:
    first, second = run(settings), run(settings)
    assert first == second
    assert count(calls) == 1
    forced = run(replace(settings, force=True))
    assert count(calls) == 2
    assert forced.created > first.created


def test_a_run_without_the_activations_it_should_keep_is_not_finished(
    settings: ExperimentSettings, calls: Path
) -> None:
    asked = compose(["method=ablation/art_then_urt", "task=activations", "reference_methods=[rtn]", "tracker=none",
                     f"paths.results={settings.paths.results}", f"executor='{settings.executor}'"])  # fmt: skip
    reference, result = experiment(asked)
    kept = settings.paths.results / result.run_id / "activations.npz"
    assert kept.is_file()
    assert not (settings.paths.results / reference.run_id / "activations.npz").exists(), "kept of a reference"
    assert list(experiment(asked)) == [reference, result]
    assert count(calls) == 2
    kept.unlink()
    assert run(asked).status == "finished"
    assert kept.is_file()
    assert count(calls) == 3


def test_force_in_a_sweep_makes_each_reference_once(settings: ExperimentSettings, calls: Path) -> None:
    run(settings)
    time.sleep(0.002)  # `created` counts milliseconds
    start = datetime.now(timezone.utc)
    forced = replace(settings, force=True)
    for _ in range(3):
        run(forced, since=start)
    assert count(calls) == 2


def test_a_failed_run_keeps_its_traceback_and_is_tried_again(
    settings: ExperimentSettings, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL_BITS", "4")
    failed = run(settings)
    folder = settings.paths.results / failed.run_id
    content = json.loads((folder / "result.json").read_text())
    assert content["status"] == "failed"
    assert content["error"] == "RuntimeError: the layer melted"
    assert "Traceback" in content["traceback"]
    assert "fake_executor.py" in content["traceback"]
    assert "the layer melted" in (folder / "log.txt").read_text()
    assert not (folder / ".lock").exists()
    monkeypatch.delenv("FAKE_FAIL_BITS")
    assert run(settings).status == "finished"
    assert count(calls) == 2


def test_one_failure_is_told_once_in_a_sweep(
    settings: ExperimentSettings, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL_BITS", "4")
    start = datetime.now(timezone.utc)
    assert [run(settings, since=start).status for _ in range(3)] == ["failed"] * 3
    assert count(calls) == 1


@pytest.mark.parametrize("executor", ["no_such_module:execute", "sq.errors:nothing", "sq.errors"])
def test_an_executor_that_is_missing_is_a_failed_run(settings: ExperimentSettings, executor: str) -> None:
    assert run(replace(settings, executor=executor)).status == "failed"


def test_interrupted_leaves_no_result_and_no_lock(
    settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fake_executor

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake_executor, "execute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    folder = settings.paths.results / run_id(settings)
    assert not (folder / "result.json").exists()
    assert not (folder / ".lock").exists()
    assert json.loads((folder / "interrupted.json").read_text())["by"] == "KeyboardInterrupt"
    assert run(settings).status == "finished"
    assert not (folder / "interrupted.json").exists()


def test_an_older_failure_or_half_a_result_does_not_survive(settings: ExperimentSettings) -> None:
    folder = settings.paths.results / run_id(settings)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"schema": 1, "status": "fin')
    (folder / ".result.json.1.tmp").write_text("{")
    assert run(settings).status == "finished"
    assert not list(folder.glob(".*"))


def test_a_result_of_another_identity_under_the_same_name_is_not_taken(
    settings: ExperimentSettings, calls: Path
) -> None:
    result = run(settings)
    replace(result, identity="0" * 64).write(settings.paths.results / result.run_id)
    run(settings)
    assert count(calls) == 2
