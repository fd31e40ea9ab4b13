"""Sweeps beyond one process and one machine: Slurm (its commands stand-ins), Ray with GPUs for each job, two hosts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.test_sweep import ALL, ROOT, SWEEP, command, results, rows, wait_until

pytestmark = pytest.mark.slow

# Slurm as submitit sees it. `sbatch` keeps the script and runs the tasks of its array one after another, in the
# background; `signalled` holds the pid of a task that SIGUSR2 is sent to, and `scontrol requeue` has it run again.
SLURM = {
    "sbatch": """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
open("{folder}/script", "w").write(script)
last = int(re.search(r"--array=0-([0-9]+)", script)[1])
runner = '''
import os, subprocess, sys
from pathlib import Path
folder, states = Path("{folder}"), []
for task in range(%d + 1):
    for attempt in range(3):
        (folder / "requeue").unlink(missing_ok=True)
        env = dict(os.environ, SLURM_JOB_ID=str(7 + task), SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(task),
                   SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0", SLURM_NTASKS="1", SLURM_NNODES="1",
                   SLURM_JOB_NODELIST="node1", SLURM_RESTART_COUNT=str(attempt))
        status = subprocess.run(["bash", sys.argv[1]], env=env).returncode
        if not (folder / "requeue").exists():
            break
    states.append("7_%%d|%%s|node1" %% (task, "FAILED" if status else "COMPLETED"))
    (folder / "states").write_text("\\\\n".join(states))
''' % last
subprocess.Popen([sys.executable, "-c", runner, sys.argv[-1]], start_new_session=True,
                 stdout=open("{folder}/out", "w"), stderr=subprocess.STDOUT)
print("Submitted batch job 7")
""",
    "srun": """#!/bin/sh
while :; do
  case "$1" in
    --unbuffered) shift ;;
    --output|--error) shift 2 ;;
    *) exec "$@" ;;
  esac
done
""",
    "sacct": """#!/bin/sh
echo "JobID|State|NodeList"
cat {folder}/states 2>/dev/null
""",
    "scontrol": """#!/bin/sh
touch {folder}/requeue
""",
    "squeue": "#!/bin/sh\n",
    "scancel": "#!/bin/sh\n",
}


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder of stand-ins for Slurm's commands."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="extra `launchers`")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in SLURM.items():
        (folder / name).write_text(text.replace("{folder}", str(folder)).replace("{python}", sys.executable))
        (folder / name).chmod(0o755)
    return folder


def test_slurm_gets_the_parameters_and_a_job_that_it_stops_is_queued_again_and_goes_on(
    tmp_path: Path, slurm: Path
) -> None:
    from tests.runs.test_sweep import start

    asked = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1",
             "hydra.launcher.cpus_per_task=8", "hydra.launcher.mem_gb=64", "hydra.launcher.timeout_min=600",
             "hydra.launcher.array_parallelism=1", "hydra.launcher.max_num_timeout=3",
             "+hydra.launcher.additional_parameters.account=lab"]  # fmt: skip
    sweep = [one.replace("bits=w4a4,w3a3,w4a8", "bits=w4a4,w3a3") for one in SWEEP]
    calls = tmp_path / "calls"
    process = start(
        tmp_path,
        *sweep,
        *asked,
        PATH=f"{slurm}:{os.environ['PATH']}",
        FAKE_SLEEP_BITS="3",
        FAKE_ONCE=str(slurm / "slept"),
    )
    wait_until(process, (slurm / "slept").exists)
    lock = next(tmp_path.glob("runs/*w3a3*/.lock")).read_text()
    os.kill(int(re.search(r"pid=(\d+)", lock)[1]), signal.SIGUSR2)  # as Slurm does ahead of a time limit or preemption
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert rows(out) == ALL[:3]
    script = (slurm / "script").read_text()
    for line in ("--partition=gpu", "--gpus-per-node=1", "--cpus-per-task=8", "--mem=64GB", "--time=600",
                 "--account=lab", "--array=0-1%1", "--signal=USR2@120"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script, script
    assert len([one for one in calls.read_text().splitlines() if "w3a3" in one]) == 2, "cut off once, then whole"
    assert not list(tmp_path.glob("runs/*/.lock"))
    assert not list(tmp_path.glob("runs/*/interrupted.json"))


@pytest.mark.skipif(not importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"), reason="extra `launchers`")
def test_ray_gives_each_job_a_gpu_of_its_own_and_takes_up_a_run_whose_worker_died(tmp_path: Path) -> None:
    """Two pretended GPUs; the worker of one run is killed, and another worker measures that run."""
    asked = ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_gpus=2", "+hydra.launcher.ray.init.num_cpus=2",
             "+hydra.launcher.ray.init.include_dashboard=false", "+hydra.launcher.ray.remote.num_gpus=1"]  # fmt: skip
    status, out, err = command(
        tmp_path, *SWEEP, *asked, HOME=str(tmp_path), RAY_USAGE_STATS_ENABLED="0",
        FAKE_KILL_BITS="3", FAKE_ONCE=str(tmp_path / "killed"),
    )  # fmt: skip
    assert status == 0, err
    assert rows(out) == ALL
    assert (tmp_path / "killed").exists()
    visible = [json.loads(path.read_text())["extras"]["gpus"] for path in tmp_path.glob("runs/*/result.json")]
    assert set(visible) <= {"0", "1"}, visible
    assert not list(tmp_path.glob("runs/*/.lock"))


HOST = """
import runpy, socket, sys
socket.gethostname = lambda: "{name}"
from sq.runs import locks
locks.BEAT_SECONDS, locks.STALE_SECONDS = 0.2, 2.0
runpy.run_path("{run}", run_name="__main__")
"""


def host(folder: Path, name: str, **environment: str) -> subprocess.Popen[str]:
    """The sweep on a machine of that name; the folder is shared."""
    script = folder / f"{name}.py"
    script.write_text(HOST.format(name=name, run=ROOT / "run.py"))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "fakes")])
    return subprocess.Popen(
        [sys.executable, str(script), *SWEEP], cwd=folder, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "FAKE_CALLS": str(folder / "calls"), **environment},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def counted(calls: Path) -> list[str]:
    return sorted(line.rsplit("-", 1)[0] for line in calls.read_text().splitlines())


def test_a_host_takes_up_the_run_that_another_host_lost(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    lost = host(tmp_path, "hosta", FAKE_SLEEP_BITS="3")
    wait_until(lost, lambda: calls.exists() and "w3a3" in calls.read_text())
    other = host(tmp_path, "hostb")
    wait_until(other, lambda: "tiny-rtn-w4a8" in results(tmp_path))  # while the first host sleeps in w3a3
    os.killpg(lost.pid, signal.SIGKILL)
    lost.communicate(timeout=30)
    out, err = other.communicate(timeout=120)
    assert other.returncode == 0, err
    assert re.search(r"job 1: tiny-rtn-w3a3-\w+ is measured elsewhere: left for the end", err)
    assert "on hosta is writing" in err
    assert rows(out) == ALL
    assert counted(calls) == sorted([*results(tmp_path), "tiny-rtn-w3a3"]), "only the lost run is measured twice"
    assert not list(tmp_path.glob("runs/*/.lock"))


def test_two_hosts_share_a_sweep(tmp_path: Path) -> None:
    """One sleeps in its first run; the other measures the rest, waits for it, and both print the same table."""
    calls = tmp_path / "calls"
    slow = host(tmp_path, "hosta", FAKE_SLEEP_BITS="4", FAKE_SLEEP_SECONDS="12", FAKE_ONCE=str(tmp_path / "slept"))
    wait_until(slow, (tmp_path / "slept").exists)
    quick = host(tmp_path, "hostb", FAKE_SLEEP_BITS="4", FAKE_ONCE=str(tmp_path / "slept"))
    found = [process.communicate(timeout=120) for process in (slow, quick)]
    assert [slow.returncode, quick.returncode] == [0, 0], found
    assert [rows(out) for out, _ in found] == [ALL, ALL]
    assert counted(calls) == results(tmp_path), "each once"
    assert ": running" in found[1][1], "the second host has measured some"
    assert "tiny-rtn-w4a4" not in " ".join(re.findall(r"(\S+): running", found[1][1]))
