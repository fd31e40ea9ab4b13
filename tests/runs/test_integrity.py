"""Run directories that are not what was written: made again by run.py, shown as damaged, never taken for results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_files import write_record

from sq.analysis.report import main as report
from sq.checkpoint.register import QUANT_METHOD
from sq.config.compose import compose, compose_jobs
from sq.config.settings import ExperimentSettings
from sq.errors import ConfigError
from sq.runs import preflight
from sq.runs.experiment import run
from sq.runs.preflight import check_jobs
from sq.runs.results import examine, read_result
from sq.runs.runid import identity, run_id


def damage(folder: Path) -> str | None:
    """What is wrong with a run directory."""
    return examine(folder)[1]


@pytest.fixture
def settings(tmp_path: Path, fake_executor: str, monkeypatch: pytest.MonkeyPatch) -> ExperimentSettings:
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    return compose(["method=rtn", "tracker=none", f"paths.results={tmp_path}/runs", f"executor='{fake_executor}'"])


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A change of result.json that leaves the rest of it alone."""

    def damage_it(folder: Path) -> None:
        record = json.loads((folder / "result.json").read_text())
        change(record)
        (folder / "result.json").write_text(json.dumps(record))

    return damage_it


def flip(name: str) -> Callable[[Path], None]:
    def damage_it(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage_it


DAMAGE = {
    "edited digit": edit(lambda record: record["metrics"].update({"kl/embedded": 0.0431})),
    "edited setting": edit(lambda record: record["config"]["calibration"].update(tokens=1)),
    "NaN": edit(lambda record: record["config"]["calibration"].update(tokens=float("nan"))),
    "wrong type": edit(lambda record: record.update(metrics=[1])),
    "unknown field": edit(lambda record: record.update(more=1)),
    "lost field": edit(lambda record: record.pop("sha256")),
    "no record": lambda folder: (folder / "result.json").write_text("[1]"),
    "empty": lambda folder: (folder / "result.json").write_text(""),
    "deep": lambda folder: (folder / "result.json").write_text("[" * 100_000),
    "flipped": flip("result.json"),
    "windows flipped": flip("windows.npz"),
    "windows cut": lambda folder: (folder / "windows.npz").write_bytes(b"PK"),
    "windows gone": lambda folder: (folder / "windows.npz").unlink(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_told_and_made_again(settings: ExperimentSettings, name: str) -> None:
    first = run(settings)
    folder = settings.paths.results / first.run_id
    assert damage(folder) is None
    DAMAGE[name](folder)  # type: ignore[operator]
    assert damage(folder) is not None
    again = run(settings)
    assert again.metrics == first.metrics
    assert damage(folder) is None
    assert (settings.paths.results.parent / "calls").read_text().count("tiny-rtn") == 2


@pytest.mark.parametrize("change", [{"seed": "0"}, {"metrics": {"kl/embedded": "low"}}, {"status": "done"},
                                    {"run_id": "../../x"}, {"model": "a/b"}, {"files": {"../x": "0"}}])  # fmt: skip
def test_a_sealed_record_of_wrong_types_is_no_result(settings: ExperimentSettings, change: dict[str, Any]) -> None:
    folder = settings.paths.results / run(settings).run_id
    record = json.loads((folder / "result.json").read_text())
    write_record(folder, {**record, **change})
    if "files" in change:  # which `write_record` makes anew
        return
    assert read_result(folder) is None
    assert damage(folder) is not None


def test_a_name_in_a_record_leads_nowhere(
    settings: ExperimentSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = settings.paths.results / run(settings).run_id
    record = json.loads((folder / "result.json").read_text())
    write_record(folder, {**record, "run_id": "../../outside"})
    assert report(["--run", str(folder), "--out", str(tmp_path / "a" / "b")]) == 2
    assert "run_id" in capsys.readouterr().err
    assert not (tmp_path / "outside").exists()


def packed_by(folder: Path, run: str) -> None:
    """A finished packed folder, as far as the config check looks."""
    from sq.checkpoint.manifest import seal

    config: dict[str, Any] = {"quantization_config": {"quant_method": QUANT_METHOD, "run": run, "files": {}}}
    config["quantization_config"]["config_digest"] = seal(config)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_of_another_run_is_refused_before_anything_starts(tmp_path: Path) -> None:
    job = compose(["method=rtn", f"save_to={tmp_path / 'p'}"])
    check_jobs([job])
    packed_by(tmp_path / "p", identity(job))
    check_jobs([job])
    other = compose(["method=quarot", f"save_to={tmp_path / 'p'}"])
    with pytest.raises(ConfigError, match=rf"holds the checkpoint of run \.\.\.-{identity(job)[:8]}.*{run_id(other)}"):
        check_jobs([other])


def test_two_jobs_with_one_folder_are_refused(tmp_path: Path) -> None:
    jobs = compose_jobs(["method=rtn,quarot", f"save_to={tmp_path / 'p'}"], multirun=True)
    with pytest.raises(ConfigError, match=rf"wanted by two runs, {run_id(jobs[0])} and {run_id(jobs[1])}"):
        check_jobs(jobs)
    assert preflight.check_jobs([jobs[0], jobs[0]]) is None  # one run, asked for twice


def test_windows_of_a_run_are_as_they_were(settings: ExperimentSettings) -> None:
    folder = settings.paths.results / run(settings).run_id
    result = read_result(folder)
    assert result is not None
    assert set(result.files) == {"windows.npz"}
    assert np.load(folder / "windows.npz")["nll"].tolist() == [0, 1, 2, 3]
