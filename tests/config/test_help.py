"""`python run.py --help` names every group and format, and imports nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sq.config.parse import options
from sq.formats.format import names

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_help_is_complete(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for group in (
        "model",
        "method",
        "weights",
        "activations",
        "kv_cache",
        "calibration",
        "task",
        "tracker",
        "export",
        "experiment",
    ):
        assert f"{group}: {', '.join(options(group))}\n" in done.stdout
    assert "method/ablation: art, art_64_steps, " in done.stdout
    assert set(names()) <= set(re.findall(r"\w+", done.stdout)), "the formats of labels"
    assert done.stdout.count("python run.py") >= 6
    assert not list(tmp_path.iterdir()), "asking for help must leave nothing behind"


@pytest.mark.slow
def test_mistakes_end_with_status_2_a_readable_text_and_nothing_written(tmp_path: Path) -> None:
    done = run("method=nope", "bits=w1a4", cwd=tmp_path)
    assert done.returncode == 2
    assert "the configuration has" in done.stderr
    assert "method=nope; allowed: " in done.stderr
    assert "bits=w1a4: weights '1' is no format; allowed: 2 to 8" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--help", "--cfg=job"])
def test_what_only_prints_imports_nothing_heavy(flag: str, tmp_path: Path) -> None:
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['run.py', {flag!r}, 'method=singlequant']\n"
        f"try: runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'transformers', 'wandb', 'datasets', 'lm_eval', 'pandas', 'numpy')\n"
        "print('heavy:', [m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_run_py_stays_small() -> None:
    text = (ROOT / "run.py").read_text()
    assert len(text.splitlines()) < 100
    assert "if method ==" not in text
