"""Sweeps through the real command: failures, reuse, Ctrl-C, worker processes."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ("-m", "method=rtn", "bits=w4a4,w3a3,w4a8", "tracker=none", "executor=fake_executor:execute")


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "fakes")])
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "FAKE_CALLS": str(folder / "calls"), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell without job control starts background commands with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def command(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(folder, *arguments, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def results(folder: Path) -> list[str]:
    return sorted(path.parent.name.rsplit("-", 1)[0] for path in folder.glob("runs/*/result.json"))


def test_a_single_run_prints_its_table(tmp_path: Path) -> None:
    status, out, err = command(tmp_path, "method=rtn", "weights=gptq", "tracker=none", "executor=fake_executor:execute")
    assert status == 0, err
    rows = [line.split()[:3] for line in out.splitlines() if line.strip().startswith(("fp16", "rtn"))]
    assert rows == [["fp16", "W16A16KV16", "-"], ["rtn", "W4A4KV16", "rtn"], ["rtn", "W4A4KV16", "gptq"]]
    for word in ("method", "bits", "weights", "ppl", "KL", "top-1", "capture+transform+weights", "memory", "size"):
        assert word in out
    assert "3.20 = 2.00+0.50+0.70" in out
    assert "340 MB" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls", "runs"], "nothing may be littered"


def test_a_failed_single_run_ends_with_status_1_and_its_reason(tmp_path: Path) -> None:
    status, out, err = command(
        tmp_path, "method=rtn", "tracker=none", "executor=fake_executor:execute", FAKE_FAIL_BITS="4"
    )
    assert status == 1
    assert "the layer melted" in out
    assert "Traceback" not in out + err


def test_a_failed_job_does_not_stop_the_sweep_and_the_next_sweep_goes_on(tmp_path: Path) -> None:
    status, out, err = command(tmp_path, *SWEEP, FAKE_FAIL_BITS="3")
    assert status == 1
    assert results(tmp_path) == ["tiny-fp16-w16a16", "tiny-rtn-w3a3", "tiny-rtn-w4a4", "tiny-rtn-w4a8"]
    assert [line.split()[1] for line in out.splitlines() if line.strip().startswith(("fp16", "rtn"))] == [
        "W16A16KV16", "W4A4KV16", "W3A3KV16", "W4A8KV16"
    ]  # fmt: skip
    assert "the layer melted" in out
    status, out, err = command(tmp_path, *SWEEP)
    assert status == 0, err
    assert "failed" not in out
    calls = [line.rsplit("-", 1)[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert sorted(calls) == ["tiny-fp16-w16a16", "tiny-rtn-w3a3", "tiny-rtn-w3a3", "tiny-rtn-w4a4", "tiny-rtn-w4a8"]


@pytest.mark.parametrize("mode", ["sweep", "single"])
def test_ctrl_c_keeps_what_is_finished_and_prints_it(tmp_path: Path, mode: str) -> None:
    arguments = SWEEP if mode == "sweep" else ("bits=w3a3", *[part for part in SWEEP[1:] if "bits" not in part])
    process = start(tmp_path, *arguments, FAKE_SLEEP_BITS="3")
    wanted = 2 if mode == "sweep" else 1
    deadline = time.monotonic() + 60
    while len(results(tmp_path)) < wanted or "w3a3" not in (tmp_path / "calls").read_text():
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "W16A16KV16" in out
    assert ("W4A4KV16" in out) == (mode == "sweep")
    assert "W3A3KV16" not in out
    assert len(results(tmp_path)) == wanted
    assert not list(tmp_path.glob("runs/*/.lock"))


@pytest.mark.skipif(not importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"), reason="extra `launchers`")
def test_workers_share_references_and_one_table(tmp_path: Path) -> None:
    status, out, err = command(tmp_path, *SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert status == 0, err
    assert (tmp_path / "calls").read_text().count("fp16") == 1
    assert out.count("quantize s") == 1
    assert results(tmp_path) == ["tiny-fp16-w16a16", "tiny-rtn-w3a3", "tiny-rtn-w4a4", "tiny-rtn-w4a8"]
    assert '"command": "python ' in next(tmp_path.glob("runs/*/result.json")).read_text()
