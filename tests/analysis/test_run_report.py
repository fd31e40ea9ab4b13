"""The page about one run says what its result.json says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import median

import pytest
from run_files import real_runs, write_record

from sq.analysis.report import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture, as runs of today."""
    return real_runs(tmp_path_factory.mktemp("runs"))


def run_of(runs: Path, method: str, task: str = "perplexity") -> Path:
    """A run of the fixture."""
    for path in sorted(runs.glob("*/result.json")):
        result = json.loads(path.read_text())
        if result["method"] == method and result["config"]["task"]["name"] == task:
            return path.parent
    raise LookupError(f"{runs} has no run of {method} with task={task}")


def test_page_and_pictures_of_a_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(runs, "singlequant")
    result = json.loads((folder / "result.json").read_text())
    assert main(["--run", str(folder), "--out", str(tmp_path)]) == 0
    place = tmp_path / "runs" / result["run_id"]
    pictures = {f"{name}.{kind}" for name in ("sites", "layers", "time") for kind in ("svg", "png", "pdf")}
    assert {path.name for path in place.iterdir()} == {"summary.md", "summary.html", *pictures}
    text = (place / "summary.md").read_text()
    down = [site for site in result["extras"]["sites"] if site["site"] == "down"]
    before, after = (median(site[f"peak_over_rms_{when}"] for site in down) for when in ("before", "after"))
    assert f"| down | {before:.2f} | {after:.2f} |" in text
    for layer in result["extras"]["layers"]:
        assert f"| {layer['layer']} | {layer['error']:.3%} |" in text
    assert f"{result['metrics']['kl/embedded']:.4f}" in text
    assert f"{result['metrics']['quantize/capture_seconds']:.2f} s" in text
    page = (place / "summary.html").read_text()
    places = [page.index(f'aria-label="{name}"') for name in ("sites", "layers", "time")]
    heads = [page.index(f"<h2>{title}") for title in ("Outliers", "Error of each layer", "Time, memory and size")]
    assert heads[0] < places[0] < heads[1] < places[1] < heads[2] < places[2], "each picture below its own heading"
    assert "src=" not in page
    assert "capture" in capsys.readouterr().out


def test_full_precision_has_quality_and_no_sites(runs: Path, tmp_path: Path) -> None:
    folder = run_of(runs, "fp16")
    assert main(["--run", str(folder), "--out", str(tmp_path)]) == 0
    place = next((tmp_path / "runs").iterdir())
    assert {path.name for path in place.iterdir()} == {"summary.md", "summary.html"}
    assert "## Outliers" not in (place / "summary.md").read_text()


def test_a_failed_run_tells_its_error(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_of(runs, "fp16"), tmp_path / "failed")
    result = json.loads((folder / "result.json").read_text())
    result |= {"status": "failed", "error": "TrainingError: diverged", "metrics": {}, "extras": {}}
    write_record(folder, result)
    assert main(["--run", str(folder), "--out", str(tmp_path / "build")]) == 0
    text = next((tmp_path / "build" / "runs").glob("*/summary.md")).read_text()
    assert "**It failed:** TrainingError: diverged" in text
