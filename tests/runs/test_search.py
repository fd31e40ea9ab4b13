"""Hydra's Optuna sweeper through the real command: it reads what jobs return, and finds what is planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.runs.test_sweep import command

pytestmark = pytest.mark.slow
pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="extra `optuna`")

# An executor whose divergence is (clip - 0.9)^2, and whose model is the smaller the fewer its bits.
EXECUTOR = """
from dataclasses import dataclass, field
@dataclass
class Execution:
    metrics: dict
    extras: dict = field(default_factory=dict)
    arrays: dict = field(default_factory=dict)
def execute(settings, run_dir, tell):
    bits = settings.bits.weights
    if bits == "2":
        raise RuntimeError("the layer melted")
    return Execution({"kl/embedded": (settings.activations.clip - 0.9) ** 2, "model/bytes": 1000.0 * int(bits)})
"""
SEARCH = ("-m", "hydra/sweeper=optuna", "method=rtn", "reference_methods=[]", "tracker=none",
          "executor=planted:execute")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "planted.py").write_text(EXECUTOR)
    return tmp_path


def search(folder: Path, *overrides: str) -> tuple[int, str, str]:
    return command(folder, *SEARCH, *overrides, path=str(folder))


def results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]


def test_a_search_finds_the_best_of_what_it_measured_and_repeats_itself(folder: Path) -> None:
    wanted = ["activations.clip=interval(0.5,1.0)", "objective=kl/embedded", "hydra.sweeper.n_trials=8",
              "hydra.sweeper.sampler.seed=1"]  # fmt: skip
    status, out, err = search(folder, *wanted)
    assert status == 0, err
    found = results(folder)
    assert len(found) == 8
    best = min(found, key=lambda one: one["metrics"]["kl/embedded"])
    (report,) = folder.glob("runs/.sweeps/*/optimization_results.yaml")
    told = yaml.safe_load(report.read_text())
    assert told["best_value"] == best["metrics"]["kl/embedded"]
    assert told["best_params"]["activations.clip"] == best["config"]["activations"]["clip"]
    assert f"best_value: {told['best_value']}" in out
    written = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}
    status, _, err = search(folder, *wanted)
    assert status == 0, err
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")} == written, "all were reused"


def test_two_objectives_have_a_front_and_failures_are_no_numbers(folder: Path) -> None:
    status, out, err = search(
        folder, "activations.clip=0.8,0.9", "bits=w2a4,w4a4,w8a4", "objective=[kl/embedded,model/bytes]",
        "hydra.sweeper.direction=[minimize,minimize]", "hydra.sweeper.n_trials=16",
        "hydra.sweeper.sampler.seed=1",
    )  # fmt: skip
    assert status == 1, "w2a4 fails"
    assert "the layer melted" in out
    (report,) = folder.glob("runs/.sweeps/*/optimization_results.yaml")
    front = yaml.safe_load(report.read_text())["solutions"]
    assert {tuple(one["params"].items()) for one in front} == {(("activations.clip", 0.9), ("bits", "w4a4"))}, err


def test_a_study_in_a_file_goes_on(folder: Path) -> None:
    wanted = ["activations.clip=interval(0.5,1.0)", "objective=kl/embedded", "hydra.sweeper.n_trials=2",
              "hydra.sweeper.storage=sqlite:///study.db", "hydra.sweeper.study_name=clips"]  # fmt: skip
    assert search(folder, *wanted)[0] == 0
    status, _, err = search(folder, *wanted, "hydra.sweeper.sampler.seed=2")
    assert status == 0, err
    import optuna

    assert len(optuna.load_study(study_name="clips", storage=f"sqlite:///{folder}/study.db").trials) == 4
