"""The scripts of docs/examples run as they stand, are short, and say what they should."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"


def run(folder: Path, *command: str) -> str:
    """What a Python process in a folder prints; the test fails with its errors where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_there_are_five_short_ones_and_the_page_shows_each() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    found = sorted(EXAMPLES.glob("*.py"))
    assert len(found) == 5
    for path in found:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40
        assert f'--8<-- "docs/examples/{path.name}"' in page


def test_a_packed_model_is_loaded_and_generates(tmp_path: Path) -> None:
    said = run(tmp_path, str(EXAMPLES / "quantize_local_model.py"))
    assert "def main(" in said
    written = json.loads((tmp_path / "packed" / "config.json").read_text(encoding="utf-8"))
    assert written["quantization_config"]["quant_method"] == "singlequant"


def test_singlequant_is_ahead_of_quarot(tmp_path: Path) -> None:
    said = run(tmp_path, str(EXAMPLES / "compare_two_methods.py"))
    kl = {name: float(value) for name, value in re.findall(r"^(\w+) +KL (\S+)", said, re.MULTILINE)}
    assert 0 < kl["singlequant"] < kl["quarot"]


def test_a_method_of_ones_own_runs_at_each_strength(tmp_path: Path) -> None:
    said = run(tmp_path, str(EXAMPLES / "add_a_method.py"))
    kl = dict(re.findall(r"strength (\S+): kl/\w+ (\S+)", said))
    assert list(kl) == ["0.0", "0.5", "1.0"]
    assert len(set(kl.values())) == 3, "the strength reaches the method"


def test_lm_eval_scores_a_quantized_model(tmp_path: Path) -> None:
    said = run(tmp_path, str(EXAMPLES / "evaluate_with_lm_eval.py"))
    assert re.search(r"^next_line \{.*acc", said, re.MULTILINE)
    assert re.search(r"^docstring \{.*acc", said, re.MULTILINE)


def test_runs_are_plotted(tmp_path: Path) -> None:
    small = ("task.perplexity.count=4", "calibration.tokens=512", "tracker=none")
    run(tmp_path, str(ROOT / "run.py"), "-m", "method=rtn,quarot", *small, f"paths.results={tmp_path / 'runs'}")
    said = run(tmp_path, str(EXAMPLES / "plot_runs.py"), "runs", "plot.svg")
    assert said.startswith("2 runs")
    assert "quarot" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
