"""TensorBoard and MLflow, with their real packages: what they keep of a run is what its directory holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sq.config.compose import compose
from sq.config.rules import TRACKERS
from sq.config.settings import ExperimentSettings
from sq.errors import ConfigError
from sq.runs.experiment import run
from sq.runs.trackers.tracker import Opening
from sq.runs.tracking import tracking

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path: Path, fake_executor: str) -> Callable[..., ExperimentSettings]:
    def composed(tracker: str, *overrides: str) -> ExperimentSettings:
        pytest.importorskip(TRACKERS[tracker][0])
        results = [f"paths.results={tmp_path}/runs", f"executor='{fake_executor}'"]
        return compose(["method=rtn", f"tracker={tracker}", *results, *overrides])

    return composed


def test_tensorboard_keeps_curves_config_and_result(settings: Callable[..., ExperimentSettings]) -> None:
    asked = settings("tensorboard", "tracker.group=nights")
    result = run(asked)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (asked.paths.results / "tensorboard" / "nights" / result.run_id).iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [(one.step, one.value) for one in events.Scalars("training/layer_01/loss")] == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
    ]
    assert [one.step for one in events.Scalars("layer/error")] == [0, 1, 2]
    assert events.Scalars("kl/embedded")[0].value == pytest.approx(result.metrics["kl/embedded"])
    (config,) = events.Tensors("config/text_summary")
    assert "| weights.name | rtn |" in config.tensor_proto.string_val[0].decode()


def test_mlflow_keeps_curves_config_result_and_files(
    settings: Callable[..., ExperimentSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    asked = settings("mlflow", "tracker.tags=[paper]", "tracker.artifacts=[run]")
    result = run(asked)
    from mlflow import MlflowClient

    client = MlflowClient((asked.paths.results / "mlruns").as_uri())
    (kept,) = client.search_runs([client.get_experiment_by_name("singlequant").experiment_id])
    assert (kept.info.run_name, kept.info.status) == (result.run_id, "FINISHED")
    assert kept.data.params["calibration.tokens"] == str(asked.calibration.tokens)
    assert kept.data.metrics["kl/embedded"] == result.metrics["kl/embedded"]
    assert kept.data.tags["tag.paper"] == "true"
    losses = client.get_metric_history(kept.info.run_id, "training/layer_01/loss")
    assert [(one.step, one.value) for one in losses] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    artifacts = kept.info.artifact_uri.removeprefix("file://")
    (stored,) = Path(artifacts).glob("run/*/result.json")
    assert json.loads(stored.read_text())["run_id"] == result.run_id
    assert json.loads(Path(artifacts, "environment.json").read_text())["python"] == result.environment["python"]


@pytest.mark.parametrize(("end", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError("boom"), "FAILED")])
def test_mlflow_learns_how_a_run_ended(
    end: BaseException, status: str, settings: Callable[..., ExperimentSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fake_executor

    def ended(*_: object) -> None:
        raise end

    asked = settings("mlflow")
    monkeypatch.setattr(fake_executor, "execute", ended)
    with suppress(KeyboardInterrupt):
        run(asked)
    from mlflow import MlflowClient

    client = MlflowClient((asked.paths.results / "mlruns").as_uri())
    (kept,) = client.search_runs([client.get_experiment_by_name("singlequant").experiment_id])
    assert kept.info.status == status


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_folder_of_figures_and_tables(
    tracker: str, settings: Callable[..., ExperimentSettings], tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    figures = tmp_path / "figures"
    figures.mkdir()
    image.new("RGB", (4, 4)).save(figures / "outliers.png")
    (figures / "main.md").write_text("| method |\n| --- |\n| rtn |\n")
    asked = settings(tracker)
    with tracking(asked.tracker, Opening("report", {})) as followed:
        followed.files("report", "figures", figures)
    assert followed.taken
    kept = {path.name for path in asked.paths.results.rglob("*") if path.is_file()}
    if tracker == "mlflow":
        assert {"outliers.png", "main.md"} <= kept
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (folder,) = (asked.paths.results / "tensorboard" / "report").iterdir()
        tags = EventAccumulator(str(folder)).Reload().Tags()
        assert tags["images"] == ["figures/outliers"]
        assert "figures/main/text_summary" in tags["tensors"]


@pytest.mark.parametrize(("tracker", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_a_mistake_with_its_command(
    tracker: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sq.config import rules

    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        compose([f"tracker={tracker}"])
    assert caught.value.problems == [f"tracker={tracker} needs a package that is not installed: pip install {package}"]


def test_a_broken_store_only_warns(settings: Callable[..., ExperimentSettings]) -> None:
    asked = settings("mlflow")
    (asked.paths.results).mkdir(parents=True)
    (asked.paths.results / "mlruns").write_text("a file where the store should be")
    assert run(asked).status == "finished"


def test_packed_needs_a_packed_folder() -> None:
    with pytest.raises(ConfigError, match="add save_to=FOLDER"):
        compose(["tracker.artifacts=[run,packed]"])
    assert replace(compose(["tracker.artifacts=run"]).tracker, artifacts=()) == compose([]).tracker
