"""Sweeps through the real command: failures, reuse, Ctrl-C, SIGKILL, and every launcher that can run here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ("-m", "method=rtn", "bits=w4a4,w3a3,w4a8", "tracker=none", "executor=fake_executor:execute")

ALL = [["fp16", "W16A16KV16"], ["rtn", "W4A4KV16"], ["rtn", "W3A3KV16"], ["rtn", "W4A8KV16"]]


def start(folder: Path, *arguments: str, path: str = "", **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "fakes"), *([path] if path else [])])
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


def command(folder: Path, *arguments: str, path: str = "", **environment: str) -> tuple[int, str, str]:
    process = start(folder, *arguments, path=path, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_until(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def rows(out: str) -> list[list[str]]:
    """Method and bits of each row of the printed table, in its order."""
    return [line.split()[:2] for line in out.splitlines() if line.strip().startswith(("fp16", "rtn"))]


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
    assert rows(out) == ALL
    assert "the layer melted" in out
    status, out, err = command(tmp_path, *SWEEP)
    assert status == 0, err
    assert "failed" not in out
    calls = [line.rsplit("-", 1)[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert sorted(calls) == ["tiny-fp16-w16a16", "tiny-rtn-w3a3", "tiny-rtn-w3a3", "tiny-rtn-w4a4", "tiny-rtn-w4a8"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("mode", ["sweep", "single"])
def test_ctrl_c_and_sigterm_keep_what_is_finished_and_print_it(tmp_path: Path, mode: str, sent: signal.Signals) -> None:
    arguments = SWEEP if mode == "sweep" else ("bits=w3a3", *[part for part in SWEEP[1:] if "bits" not in part])
    process = start(tmp_path, *arguments, FAKE_SLEEP_BITS="3")
    wanted = 2 if mode == "sweep" else 1
    wait_until(process, lambda: len(results(tmp_path)) >= wanted and "w3a3" in (tmp_path / "calls").read_text())
    os.killpg(process.pid, sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    (cut_off,) = tmp_path.glob("runs/tiny-rtn-w3a3-*")
    marked = json.loads((cut_off / "interrupted.json").read_text())
    assert marked["by"] == ("SIGTERM" if sent == signal.SIGTERM else "KeyboardInterrupt")
    assert "interrupted" in (cut_off / "log.txt").read_text()
    assert "W16A16KV16" in out
    assert ("W4A4KV16" in out) == (mode == "sweep")
    assert "W3A3KV16" not in out
    assert len(results(tmp_path)) == wanted
    assert not list(tmp_path.glob("runs/*/.lock"))
    status, out, err = command(tmp_path, *arguments)
    assert status == 0, err
    assert "W3A3KV16" in out
    assert not (cut_off / "interrupted.json").exists()


def test_a_killed_sweep_and_a_deleted_run_cost_only_what_is_gone(tmp_path: Path) -> None:
    """Nothing finished is lost, nothing half-written is read, and the lock of the dead blocks nobody."""
    process = start(tmp_path, *SWEEP, FAKE_SLEEP_BITS="3")
    calls = tmp_path / "calls"
    wait_until(process, lambda: calls.exists() and "w3a3" in calls.read_text())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    (half,) = tmp_path.glob("runs/tiny-rtn-w3a3-*")
    assert {".lock", "config.yaml", "log.txt"} <= {path.name for path in half.iterdir()}
    assert results(tmp_path) == ["tiny-fp16-w16a16", "tiny-rtn-w4a4"]
    before = {path: path.read_bytes() for path in tmp_path.glob("runs/*/result.json")}
    # What dying in the middle of a write leaves, had it come a moment later; and a run that somebody deletes:
    (half / ".result.json.1.tmp").write_text('{"schema": 1, "status": "fin')
    (half / "windows.npz").write_bytes(b"PK")
    (gone,) = tmp_path.glob("runs/tiny-rtn-w4a4-*")
    shutil.rmtree(gone)
    calls.unlink()
    status, out, err = command(tmp_path, *SWEEP)
    assert status == 0, err
    assert re.search(r"taking up tiny-rtn-w3a3-\w+, which process \d+ on \S+ left", err)
    assert rows(out) == ALL
    made = [line.rsplit("-", 1)[0] for line in calls.read_text().splitlines()]
    assert made == ["tiny-rtn-w4a4", "tiny-rtn-w3a3", "tiny-rtn-w4a8"]
    assert all(path.parent == gone or path.read_bytes() == content for path, content in before.items())
    assert np.load(half / "windows.npz")["nll"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not list(half.glob(".*"))


def launcher(name: str, *arguments: str) -> object:
    plugin = f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher"
    missing = importlib.util.find_spec(plugin) is None
    mark = pytest.mark.skipif(missing, reason=f"{plugin} is not installed; extra `launchers`")
    return pytest.param([f"hydra/launcher={name}", *arguments], marks=mark, id=name)


# Ray packs its working directory and starts workers inside the copy, as those of a cluster start anywhere.
RAY = ("num_cpus=2", "include_dashboard=false", "runtime_env.working_dir=elsewhere")


@pytest.mark.parametrize("chosen", [
    launcher("joblib", "hydra.launcher.n_jobs=2"),
    launcher("submitit_local"),
    launcher("ray", *(f"+hydra.launcher.ray.init.{option}" for option in RAY)),
])  # fmt: skip
def test_workers_share_references_and_one_table(tmp_path: Path, chosen: list[str]) -> None:
    """Both relative paths of the command (results, and the sweep below it) mean its own folder in every worker."""
    (tmp_path / "elsewhere").mkdir()
    status, out, err = command(tmp_path, *SWEEP, *chosen, HOME=str(tmp_path), RAY_USAGE_STATS_ENABLED="0")
    assert status == 0, err
    assert sorted(line.rsplit("-", 1)[0] for line in (tmp_path / "calls").read_text().splitlines()) == results(tmp_path)
    assert results(tmp_path) == ["tiny-fp16-w16a16", "tiny-rtn-w3a3", "tiny-rtn-w4a4", "tiny-rtn-w4a8"]
    assert rows(out) == ALL
    assert '"command": "python ' in next(tmp_path.glob("runs/*/result.json")).read_text()
    assert not list(tmp_path.glob("runs/*/.lock"))


@pytest.mark.skipif(not importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"), reason="extra `launchers`")
def test_a_worker_that_is_killed_does_not_cost_the_table_of_the_others(tmp_path: Path) -> None:
    status, out, _ = command(tmp_path, *SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", FAKE_KILL_BITS="3")
    assert status == 1
    assert rows(out)[0] == ALL[0], "the reference was finished before the worker died"
    assert ["rtn", "W3A3KV16"] not in rows(out)
    assert "tiny-rtn-w3a3" not in results(tmp_path)
