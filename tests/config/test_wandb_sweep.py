"""The example of a W&B sweep: every command its agents would type is one that run.py takes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml

from sq.config.compose import compose_jobs
from sq.config.parse import CONF
from sq.runs.runid import run_id

SWEEP: dict[str, Any] = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())


def commands() -> list[list[str]]:
    """One a grid point, expanded by the functions that `wandb agent` itself uses."""
    agent = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    names = list(SWEEP["parameters"])
    values = [entry.get("values", [entry.get("value")]) for entry in SWEEP["parameters"].values()]
    found = []
    for point in itertools.product(*values):
        parts = agent.create_sweep_command_args(
            {"args": dict(zip(names, ({"value": one} for one in point), strict=True))}
        )
        parts |= {"interpreter": ["python"], "program": [SWEEP["program"]], "env": ["/usr/bin/env"]}
        template = agent.create_sweep_command(SWEEP["command"])
        found.append([word for part in template for word in parts.get(part[2:-1], [part])])
    return found


@pytest.mark.slow
def test_every_command_of_the_sweep_is_one_run_of_its_own() -> None:
    found = commands()
    assert found[0][:3] == ["/usr/bin/env", "python", "run.py"]
    assert len(set(map(tuple, found))) == 3 * 3 * 2 * 2
    (first,), (last,) = (compose_jobs(found[index][3:]) for index in (0, -1))
    # All of them at once, as one line of run.py: composing one by one takes ten times as long.
    columns = [dict.fromkeys(column) for column in zip(*(command[3:] for command in found), strict=True)]
    keys = [next(iter(column)).partition("=")[0] for column in columns]
    line = [
        f"{key}={','.join(word.partition('=')[2] for word in column)}"
        for key, column in zip(keys, columns, strict=True)
    ]
    jobs = compose_jobs(line, multirun=True)
    assert len({run_id(job) for job in jobs}) == len(jobs) == len(found)
    assert (first, last) == (jobs[0], jobs[-1])
    assert {job.reference_methods for job in jobs} == {()}, "an agent waits for one run"
    assert {job.tracker.name for job in jobs} == {"online"}


def test_the_metric_is_one_that_the_runs_report() -> None:
    (job,) = compose_jobs(commands()[0][3:])
    assert job.task.perplexity is not None
    assert SWEEP["metric"]["name"] in {f"kl/{text}" for text in job.task.perplexity.texts}
    assert SWEEP["project"] == job.tracker.project, "W&B ignores the project of a run inside a sweep"
