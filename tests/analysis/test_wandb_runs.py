"""Runs from a W&B project have the columns of run directories; the API is a stand-in that keeps what was logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from sq import analysis
from sq.analysis import load_wandb
from sq.analysis.tables import table_perplexity
from sq.config.settings import TrackerSettings
from sq.errors import DataError
from sq.runs.results import Result, read_result
from sq.runs.tracking import track

wandb = pytest.importorskip("wandb")
TRACKER = TrackerSettings(name="online", project="p", entity=None, group=None, tags=(), dir=None)


class Project:
    """Stands for W&B: takes what `track` logs, and gives it back as `wandb.Api().runs` does."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.asked = ""

    def init(self, *, config: dict[str, Any], **_: Any) -> Any:
        class Config(dict[str, Any]):
            def update(self, *values: Any, allow_val_change: bool = False, **_: Any) -> None:
                super().update(*values)

        created = f"2026-01-01T00:00:0{len(self.kept)}Z"
        run = SimpleNamespace(config=Config(config), summary={"_step": 1}, created_at=created)
        run.log = run.summary.update
        run.define_metric = run.finish = lambda *_, **__: None
        self.kept.append(run)
        return run

    def runs(self, path: str) -> list[Any]:
        self.asked = path
        return self.kept


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Project:
    fake = Project()
    monkeypatch.setattr(wandb, "init", fake.init)
    return fake


def logged(results: Path) -> list[Result]:
    return [found for path in sorted(results.iterdir()) if (found := read_result(path)) is not None]


def test_columns_and_numbers_are_those_of_the_run_directories(sweep: Callable[..., Path], project: Project) -> None:
    kv4 = ["bits=w4a4kv4"]
    results = sweep("experiment=smoke", *kv4)
    for result in logged(results):
        assert track(TRACKER, result, results / result.run_id)
    ours, theirs = analysis.load(results), load_wandb("p", "me", project)
    assert project.asked == "me/p"
    assert set(ours.columns) == set(theirs.columns)
    ours, theirs = ours.set_index("run_id"), theirs.set_index("run_id")[ours.columns.drop("run_id")]
    told_otherwise = ["folder", "created", "git_commit", "command"]
    pd.testing.assert_frame_equal(
        ours.drop(columns=told_otherwise).sort_index(), theirs.drop(columns=told_otherwise).sort_index(),
        check_dtype=False,
    )  # fmt: skip
    assert theirs["folder"].isna().all()
    tables = [table_perplexity(frame.reset_index(), experiment="smoke", overrides=kv4) for frame in (ours, theirs)]
    assert tables[0].markdown() == tables[1].markdown()
    assert "| singlequant | 16.500 |  | 0.0432 | 1.000 |" in tables[1].markdown()  # no windows, no intervals


def test_the_newest_of_two_logs_and_failures_count_and_cut_off_runs_do_not(
    sweep: Callable[..., Path], project: Project
) -> None:
    results = sweep("experiment=smoke")
    first, second, *_ = logged(results)
    track(TRACKER, first, results)
    track(TRACKER, replace(first, metrics={**first.metrics, "ppl/embedded": 1.5}), results)
    track(TRACKER, replace(second, status="failed", error="ValueError: boom", metrics={}), results)
    track(TRACKER, replace(second, run_id="cut-off"), results)
    del project.kept[-1].summary["status"]
    project.kept.append(SimpleNamespace(config={"lr": 1}, summary={}, created_at=""))  # another program's run
    frame = load_wandb("p", api=project).set_index("run_id")
    assert list(frame.index) == [first.run_id, second.run_id]
    assert frame.loc[first.run_id, "ppl/embedded"] == 1.5
    assert (frame.loc[second.run_id, "status"], frame.loc[second.run_id, "error"]) == ("failed", "ValueError: boom")


def test_a_project_that_cannot_be_read_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="W&B project p holds no run"):
        load_wandb("p", api=project)
    monkeypatch.setattr(project, "runs", lambda path: (_ for _ in ()).throw(ValueError("no such project")))
    with pytest.raises(
        DataError, match=r"W&B project me/p cannot be read \(ValueError: no such project\).*wandb login"
    ):
        load_wandb("p", "me", project)
