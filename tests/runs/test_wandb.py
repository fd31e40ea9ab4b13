"""W&B follows a run while it works, and whatever W&B does the result stays safe."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sq.config.compose import compose
from sq.config.settings import ExperimentSettings
from sq.runs.experiment import experiment, run
from sq.runs.results import read_result

wandb = pytest.importorskip("wandb")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path: Path, fake_executor: str) -> ExperimentSettings:
    return compose(["method=rtn", "tracker=offline", f"paths.results={tmp_path}/runs", f"executor='{fake_executor}'"])


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("sq"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class FakeRun:
    """Stands for a W&B run; `broken` names the call that raises."""

    def __init__(self, broken: str, results: Path) -> None:
        self.broken, self.results, self.logged = broken, results, []
        self.summary: dict[str, Any] = {}
        self.config, self.exits, self.axes = SimpleNamespace(update=self._update), [], []
        self.updated: dict[str, Any] = {}
        self._raise("init")

    def _raise(self, place: str) -> None:
        if place == self.broken:
            raise OSError(28, f"No space left on device ({place})")

    def _update(self, values: dict[str, Any], allow_val_change: bool) -> None:
        assert any(read_result(folder) for folder in self.results.glob("tiny-*")), "result.json is written before"
        self.updated |= values

    def define_metric(self, name: str, **_: Any) -> None:
        self.axes.append(name)

    def finish(self, exit_code: int) -> None:
        self._raise("finish")
        self.exits.append(exit_code)

    def log(self, values: dict[str, Any]) -> None:
        self._raise("log")
        self.logged.append(values)


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_broken_wandb_only_warns(
    broken: str, settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun(broken, settings.paths.results))
    result = run(settings)
    assert result.status == "finished"
    assert read_result(settings.paths.results / result.run_id) == result
    (warning,) = warnings()
    assert f"No space left on device ({broken})" in warning
    assert "tracker=none" in warning


def test_an_unwritable_wandb_folder_only_warns(
    settings: ExperimentSettings, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    (tmp_path / "file").touch()
    result = run(replace(settings, tracker=replace(settings.tracker, dir=tmp_path / "file" / "wandb")))
    assert read_result(settings.paths.results / result.run_id) == result
    assert str(tmp_path / "file") in warnings()[0]


def test_an_outage_only_warns(
    settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    def no_network(**_: object) -> None:
        raise wandb.errors.CommError("could not reach api.wandb.ai")

    monkeypatch.setattr(wandb, "init", no_network)
    assert run(replace(settings, tracker=replace(settings.tracker, name="online"))).status == "finished"
    assert "could not reach" in warnings()[0]


def test_wandb_gets_config_metrics_table_group_and_tags(
    settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def init(**arguments: Any) -> FakeRun:
        seen.update(arguments, run=FakeRun("", settings.paths.results))
        return seen["run"]

    monkeypatch.setattr(wandb, "init", init)
    result = run(replace(settings, tracker=replace(settings.tracker, tags=("paper",))), group="sweep-1")
    assert (seen["mode"], seen["group"], seen["tags"], seen["name"]) == ("offline", "sweep-1", ["paper"], result.run_id)
    assert seen["config"]["bits"] == "w4a4kv16"
    *_, metrics, table = seen["run"].logged
    assert metrics["kl/embedded"] == 0.0432
    assert table["result"].columns[:3] == ["run_id", "model", "method"]
    assert seen["run"].summary["status"] == "finished"
    assert set(seen["run"].updated) == {"environment", "resolved"}
    assert seen["run"].exits == [0]


def test_losses_and_layers_come_while_the_run_works(
    settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(FakeRun):
        def log(self, values: dict[str, Any]) -> None:
            assert "ppl/embedded" in values or "result" in values or not list(self.results.glob("*/result.json"))
            super().log(values)

    opened: list[FakeRun] = []
    monkeypatch.setattr(wandb, "init", lambda **_: opened.append(Watched("", settings.paths.results)) or opened[-1])
    run(settings)
    assert opened[0].logged[2:4] == [
        {"training/layer_01/loss": 0.5, "training/step": 1},
        {"layer/error": 0.1, "layer/peak_over_rms/qkv": 3.0, "layer/step": 1},
    ]
    assert opened[0].axes == ["training/step", "training/*", "layer/step", "layer/*"]


@pytest.mark.parametrize(("end", "status"), [(KeyboardInterrupt("SIGTERM"), 130), (ValueError("boom"), 1)])
def test_a_run_that_ends_early_is_closed_as_such(
    end: BaseException, status: int, settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fake_executor

    def ended(*_: object) -> None:
        raise end

    opened: list[FakeRun] = []
    monkeypatch.setattr(wandb, "init", lambda **_: opened.append(FakeRun("", settings.paths.results)) or opened[-1])
    monkeypatch.setattr(fake_executor, "execute", ended)
    with suppress(KeyboardInterrupt):
        run(settings)
    assert opened[0].exits == [status]
    assert ("status" in opened[0].summary) == (status == 1), "a table takes what has a status"


@pytest.mark.slow
def test_offline_really_writes_without_an_account_and_says_nothing(
    settings: ExperimentSettings, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    home = settings.paths.results.parent / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    wandb.teardown()  # it read the environment when its first run of this process began
    found = run(replace(settings, tracker=replace(settings.tracker, artifacts=("run",))))
    wandb.teardown()
    (kept,) = (settings.paths.results / "wandb").glob("offline-run-*/*.wandb")
    content = kept.read_bytes()
    for word in ("training/layer_01/loss", "layer/error", f"run-{found.run_id}", "windows.npz", "ppl/embedded"):
        assert word.encode() in content, word
    assert "wandb" not in "".join(capfd.readouterr())
    assert not list(home.iterdir()), "staged in the home folder"
    if (ROOT / ".git").exists():
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert commit.stdout.strip().encode() in content


def test_none_does_not_touch_wandb(settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was called"))
    run(replace(settings, tracker=replace(settings.tracker, name="none")))
    assert not (settings.paths.results / "wandb").exists()


def test_an_agents_run_is_told_even_when_it_is_reused_and_its_references_are_not(
    settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent waits for one W&B run; a second one of the same process would be written over it."""
    told: list[dict[str, Any]] = []

    def init(**arguments: Any) -> FakeRun:
        told.append(arguments)
        return FakeRun("", settings.paths.results)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    asked = replace(settings, reference_methods=("fp16",))
    first, again = ([result.run_id for result in experiment(asked)][-1] for _ in range(2))
    assert first == again
    assert [arguments["name"] for arguments in told] == [first, again]
    assert told[0]["config"]["settings"]["method"]["name"] == "rtn"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    list(experiment(asked))
    assert len(told) == 2, "outside a sweep what is reused was told when it was made"


def test_a_sweep_locks_the_names_it_sweeps_and_the_settings_stay_whole(
    settings: ExperimentSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B itself, offline, started as its agent would start it."""
    (tmp_path / "swept.yaml").write_text("wandb_version: 1\nmethod: {value: rtn}\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "swept.yaml"))
    wandb.teardown()  # it read the environment when its first run of this process began
    seen: list[tuple[str, dict[str, Any]]] = []
    init = wandb.init

    def watched(**arguments: Any) -> Any:
        opened = init(**arguments)
        seen.append((opened.id, dict(opened.config)))
        return opened

    monkeypatch.setattr(wandb, "init", watched)
    result = run(settings)
    wandb.teardown()
    ((name, config),) = seen
    assert name == "chosen"
    assert config["method"] == "rtn"
    assert config["settings"]["method"] == result.config["method"]
